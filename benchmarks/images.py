"""How long does it take from a camera's JPEG file to the network's input, and how far is it off?

    python benchmarks/images.py [--root NUSCENES] [--rounds N]

Three arms over the same files and the same augmentations, each in one thread, as in a loader
worker. Files lie in the page cache, so the clock is the processor time of the thread: what other
programs on the machine, and idle threads of OpenMP, do moves it least.

    pillow    the whole image decoded, resized (bicubic, Pillow's default), cropped, turned: the
              BEVDet family
    opencv    the same by OpenCV, bilinear: the mmcv family
    bevcask   decoded smaller, one resize; one warp where there is rotation

`pixels` ends with the RGB image (256, 704, 3) uint8, `input` with the normalised float32
(3, 256, 704) of a batch; the first two families normalise as `mmcv.imnormalize` does. `clean` is
the resize and crop of a validation frame, which the goals are about; `augmented` draws from
BEVDepth's published ranges: every frame is turned, by the same warp in two of the arms, and above
half the original size nothing can be decoded smaller. Without `--root` (or
BEVCASK_NUSCENES) the images are a synthetic world's, which decode faster than photographs.

    sample    all that BEVDepth's student is shown of a frame in training: six images, boxes, LiDAR
              points for its depth loss; processor time of the process
    batched   the same, and stacked into a batch of one
    six       its six images alone, decoded and warped
"""

import argparse
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from time import process_time, thread_time
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from measure import ground, interleave, make_world, ratio, report
from PIL import Image

from bevcask.config import AugmentConfig, DatasetConfig
from bevcask.data.augment import draw
from bevcask.data.images import (
    ImageTransform,
    Pixels,
    load_image,
    to_planes,
)
from bevcask.data.index.frames import Frames
from bevcask.data.samples import SampleReader, collate
from bevcask.data.workers import tensors_of
from bevcask.detectors.base import MEAN_RGB, STD_RGB, Batch
from bevcask.detectors.bevdepth import BEVDepth, BEVDepthConfig
from bevcask.processes import keep_freed_memory

SEED = 0
CAMERA_HW = (900, 1600)
NETWORK_HW = (256, 704)
NUM_IMAGES = 48
AUGMENT = AugmentConfig(
    resize=(-0.06, 0.11), crop=True, image_flip=True, image_rotation=5.4
)  # BEVDepth's published ranges
STUDENT = AUGMENT.model_copy(
    update={"bev_rotation": 0.39, "bev_scale": (0.95, 1.05), "bev_flip_x": True, "bev_flip_y": True}
)
NUM_FRAMES = 24
FLOATS = 6 * (3 + 1) * NETWORK_HW[0] * NETWORK_HW[1] * 4
"""Bytes of a frame's images and depth maps in float32: what a sample was, labels aside."""
KINDS = ("clean", "augmented")
ENDS = ("pixels", "input")
GOALS = {"pillow clean": ">= 4", "opencv clean": ">= 1.5"}
Load = Callable[[Path, ImageTransform], Pixels]
Normalise = Callable[[Pixels, npt.NDArray[np.float32]], None]


def by_pillow(
    path: Path, transform: ImageTransform, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Pixels:
    """Resize the whole image, crop at whole pixels, mirror, rotate."""
    image: Image.Image = Image.open(path)
    size, box = _whole_pixels(transform)
    image = image.resize(size, resample).crop(box)
    if transform.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if transform.rotation:
        image = image.rotate(math.degrees(transform.rotation))
    return np.asarray(image)


def by_opencv(path: Path, transform: ImageTransform) -> Pixels:
    """Resize the whole image, crop at whole pixels, mirror, rotate."""
    size, (left, top, right, bottom) = _whole_pixels(transform)
    image = cv2.resize(cv2.imread(str(path)), size, interpolation=cv2.INTER_LINEAR)
    image = image[top:bottom, left:right]
    if transform.flip:
        image = cv2.flip(image, 1)
    if transform.rotation:
        centre = (right - left - 1) / 2, (bottom - top - 1) / 2
        turn = cv2.getRotationMatrix2D(centre, math.degrees(transform.rotation), 1.0)
        image = cv2.warpAffine(image, turn, (right - left, bottom - top))
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def by_bevcask(path: Path, transform: ImageTransform) -> Pixels:
    """Load as a student's loader does."""
    return load_image(path, CAMERA_HW, transform)


def normalise_by_mmcv(image_HW3: Pixels, out_CHW: npt.NDArray[np.float32]) -> None:
    """Convert, subtract, multiply by OpenCV, then transpose."""
    image = image_HW3.astype(np.float32)
    cv2.subtract(image, np.array([MEAN_RGB]), image)
    cv2.multiply(image, 1 / np.array([STD_RGB]), image)
    out_CHW[...] = image.transpose(2, 0, 1)


def normalise_a_batch(image_HW3: Pixels, out_CHW: npt.NDArray[np.float32]) -> None:
    """Part the planes as a loader does, and normalise them as a detector does."""
    planes_CHW = np.empty(out_CHW.shape, np.uint8)
    to_planes(image_HW3, planes_CHW)
    batch = Batch([""], torch.eye(4)[None], torch.from_numpy(planes_CHW)[None, None])
    out_CHW[...] = batch.normalised()[0, 0]


ARMS: dict[str, tuple[Load, Normalise]] = {
    "pillow": (by_pillow, normalise_by_mmcv),
    "opencv": (by_opencv, normalise_by_mmcv),
    "bevcask": (by_bevcask, normalise_a_batch),
}


def _whole_pixels(transform: ImageTransform) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return (width, height) of the resized image and the crop box in it."""
    height, width = (round(size * transform.scale) for size in CAMERA_HW)
    left, top = round(transform.crop_left), round(transform.crop_top)
    return (width, height), (left, top, left + NETWORK_HW[1], top + NETWORK_HW[0])


def find_images(root: Path) -> list[Path]:
    """Return `NUM_IMAGES` camera files, spread over all there are."""
    found = sorted((root / "samples").glob("CAM_*/*.jpg"))
    return found[:: max(1, len(found) // NUM_IMAGES)][:NUM_IMAGES]


def transforms(augment: AugmentConfig | None, paths: list[Path]) -> list[ImageTransform]:
    """Return one drawn (or the clean) transform an image."""
    return [draw(augment, SEED, p.name, 0, [CAMERA_HW], NETWORK_HW).images[0] for p in paths]


def difference(first: Load, second: Load, paths: list[Path]) -> float:
    """Return the mean absolute difference of two arms on clean images, of 255."""
    clean = transforms(None, paths)
    pairs = [(first(p, t), second(p, t)) for p, t in zip(paths, clean, strict=True)]
    return float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))


def measure(paths: list[Path], rounds: int, data: str) -> dict[str, Any]:
    """Time all arms; return seconds an image, ratios, differences and what they stand on."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    result = ground(torch.device("cpu"), [f"{CAMERA_HW} -> {NETWORK_HW}", repr(AUGMENT)], SEED)

    out_CHW = np.empty((3, *NETWORK_HW), np.float32)

    def clock(arm: str, kind: str, end: str) -> Callable[[], float]:
        load, to_input = ARMS[arm]
        drawn = transforms(AUGMENT if kind == "augmented" else None, paths)

        def seconds() -> float:
            start = thread_time()
            for path, transform in zip(paths, drawn, strict=True):
                image = load(path, transform)
                if end == "input":
                    to_input(image, out_CHW)
            return (thread_time() - start) / len(paths)

        return seconds

    clocks = {" ".join(key): clock(*key) for key in product(ARMS, KINDS, ENDS)}
    seconds = interleave(clocks, rounds, SEED)

    def times(arm: str, kind: str, end: str) -> dict[str, Any]:
        pairs = zip(seconds[f"{arm} {kind} {end}"], seconds[f"bevcask {kind} {end}"], strict=True)
        name = f"{arm} / bevcask, {kind} {end}"
        return ratio(name, [other / own for other, own in pairs], GOALS.get(f"{arm} {kind}"))

    def bilinear(path: Path, transform: ImageTransform) -> Pixels:
        return by_pillow(path, transform, Image.Resampling.BILINEAR)

    return result | {
        "data": data,
        "weights": "none",
        "images": len(paths),
        "bytes_an_image": sum(path.stat().st_size for path in paths) // len(paths),
        "seconds": seconds,
        "ratios": [times(*key) for key in product(("pillow", "opencv"), KINDS, ENDS)],
        "mean_absolute_difference_of_255": {
            f"{name} - pillow {filter_name}": difference(ARMS[name][0], reference, paths)
            for name in ("bevcask", "opencv")
            for filter_name, reference in (("bicubic", by_pillow), ("bilinear", bilinear))
        },
    }


def measure_samples(frames: Frames, rounds: int) -> dict[str, Any]:
    """Time whole samples against their six images alone; return seconds a frame and ratios."""
    reader = SampleReader(frames, BEVDepth.inputs(BEVDepthConfig()), STUDENT, SEED)
    tokens = frames.tokens[:NUM_FRAMES]
    files = [
        (frames.root / name.decode(), transform)
        for token in tokens
        for name, transform in zip(
            frames.index["frame_image"][frames.row(token)],
            draw(STUDENT, SEED, token, 0, [CAMERA_HW] * 6, NETWORK_HW).images,
            strict=True,
        )
    ]

    def clock(work: Callable[..., object], arguments: Sequence[tuple[Any, ...]]) -> float:
        start = process_time()
        for own in arguments:
            work(*own)
        return (process_time() - start) / len(tokens)

    each = [(token,) for token in tokens]
    clocks: dict[str, Callable[[], float]] = {
        "six": lambda: clock(by_bevcask, files),
        "sample": lambda: clock(reader.read, each),
        "batched": lambda: clock(lambda token: collate([reader.read(token)]), each),
    }
    seconds = interleave(clocks, rounds, SEED)

    def times(arm: str, goal: str | None) -> dict[str, Any]:
        pairs = zip(seconds[arm], seconds["six"], strict=True)
        return ratio(f"{arm} / six", [own / six for own, six in pairs], goal)

    sizes = [
        sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(collate([reader.read(t)])))
        for t in tokens
    ]
    shares = [size / FLOATS for size in sizes]
    return {
        "frames": len(tokens),
        "bytes_a_sample": sum(sizes) // len(sizes),
        "seconds": seconds,
        "ratios": [
            times("sample", "<= 1.25"),
            times("batched", None),
            ratio("bytes a sample / in float32", shares, "<= 0.3"),
        ],
    }


def measure_all(root: Path, rounds: int, data: str) -> dict[str, Any]:
    """Measure images and samples of a dataset, these with the memory of a loader worker."""
    result = measure(find_images(root), rounds, data)
    version = next(root.glob("v1.0-*")).name
    frames = Frames.select(DatasetConfig(root=str(root), version=version, split="all"))
    keep_freed_memory()
    samples = measure_samples(frames, rounds)
    seconds = result["seconds"] | samples["seconds"]
    return result | samples | {"seconds": seconds, "ratios": result["ratios"] + samples["ratios"]}


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", help="nuScenes (default: BEVCASK_NUSCENES, else synthetic)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file (default: results/images.json)")
    options = parser.parse_args()
    root = options.root or os.environ.get("BEVCASK_NUSCENES")
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            os.environ["BEVCASK_HOME"] = folder
            world = make_world(Path(folder) / "world", NUM_IMAGES // 6, CAMERA_HW[1])
            result = measure_all(world, options.rounds, "synthetic world")
        else:
            result = measure_all(Path(root), options.rounds, "nuScenes")
    for name, value in result["mean_absolute_difference_of_255"].items():
        print(f"{name:28} {value:6.3f} of 255")
    report("images", result, options.out)


if __name__ == "__main__":
    main()
