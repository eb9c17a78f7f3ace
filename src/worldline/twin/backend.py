"""How MuJoCo is loaded, and which OpenGL it renders with: it binds to that when it is first imported."""

import ctypes
import importlib
import os
import sys
from types import ModuleType

from worldline.schema import UsageError

INSTALL_GL = "apt-get install libegl1 libgl1-mesa-dri, or apt-get install libosmesa6 and set MUJOCO_GL=osmesa"


def load_mujoco() -> ModuleType:
    """Import MuJoCo; on Linux with EGL or OSMesa, unless `MUJOCO_GL` is set. Raises `UsageError` without either."""
    if "mujoco" not in sys.modules and sys.platform == "linux" and "MUJOCO_GL" not in os.environ:
        egl = _egl_has_device()
        if not egl and not any(map(_library, ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"))):
            raise UsageError(f"Neither EGL nor OSMesa can draw here: {INSTALL_GL}")
        os.environ["MUJOCO_GL"] = "egl" if egl else "osmesa"
    try:
        return importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise UsageError(f"The twin needs MuJoCo ({error}): pip install worldline[twin]") from error
    except (ImportError, AttributeError, RuntimeError) as error:  # PyOpenGL says AttributeError for no library
        backend = os.environ.get("MUJOCO_GL", "its default")
        raise UsageError(f"MuJoCo cannot load its OpenGL backend ({backend}): {INSTALL_GL}") from error


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
