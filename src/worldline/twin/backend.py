"""How MuJoCo is loaded, and which OpenGL it renders with.

MuJoCo binds to its OpenGL backend when it is first imported, so the choice is made here, before that import,
and never when a module of ours is imported.
"""

import ctypes
import importlib
import os
import sys
from types import ModuleType

from worldline.schema import UsageError

INSTALL_GL = "apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6 and set MUJOCO_GL=osmesa"


def load_mujoco() -> ModuleType:
    """Import MuJoCo; on Linux with an off-screen backend: EGL, or OSMesa where EGL has no device.

    A `MUJOCO_GL` set by the user is left as it is.

    Raises:
        UsageError: MuJoCo or every off-screen backend is missing; the message says what to install.
    """
    if "mujoco" not in sys.modules and sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        os.environ["MUJOCO_GL"] = _offscreen_backend()
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise UsageError(f"The twin needs MuJoCo ({error}): pip install worldline[twin]") from error
    except (ImportError, AttributeError, RuntimeError) as error:  # PyOpenGL says AttributeError for no library
        backend = os.environ.get("MUJOCO_GL", "its default")
        raise UsageError(f"MuJoCo cannot load its OpenGL backend ({backend}): {INSTALL_GL}") from error


def _offscreen_backend() -> str:
    if _egl_has_device():
        return "egl"
    if any(_library(name) for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")):
        return "osmesa"
    raise UsageError(f"Neither EGL nor OSMesa can draw here: {INSTALL_GL}")


def _egl_has_device() -> bool:
    """Tell whether EGL finds something to draw with. Its library alone may be there without any driver."""
    egl = _library("libEGL.so.1")
    if egl is None:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address, count = egl.eglGetProcAddress(b"eglQueryDevicesEXT"), ctypes.c_int(0)
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    return bool(address and query(address)(0, None, ctypes.addressof(count))) and count.value > 0


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
