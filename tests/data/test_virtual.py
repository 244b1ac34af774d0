import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bevcask.compose import compose
from bevcask.config import AugmentConfig
from bevcask.data.index.frames import Frames
from bevcask.data.lidar import read_points
from bevcask.data.samples import SampleReader
from bevcask.data.virtual import read_virtual, virtual_digest
from bevcask.detectors.base import Inputs
from bevcask.errors import ConfigError, DataError
from bevcask.geometry import (
    CLASSES,
    VIRTUAL_POINT_FIELDS,
    inside_footprints,
    transform_points,
)
from bevcask.verbs import ExtractConfig
from data.virtual_files import PER_BOX, write_virtual

Select = Callable[..., Frames]
INPUTS = Inputs(num_sweeps=2, virtual_points=True)


@pytest.fixture
def frames(tiny_world: Path, select: Select, tiny_frames: Frames, tmp_path: Path) -> Frames:
    folder = write_virtual(tmp_path / "virtual", tiny_frames)
    return select(tiny_world, virtual_points=str(folder))


def folder_of(frames: Frames) -> Path:
    assert frames.virtual_points is not None
    return frames.virtual_points


def test_the_layout_is_written_down_once() -> None:
    assert VIRTUAL_POINT_FIELDS[:5] == ("x", "y", "z", "intensity", "seconds")
    assert VIRTUAL_POINT_FIELDS[5:15] == CLASSES
    assert VIRTUAL_POINT_FIELDS[15:] == ("score", "virtual")


def test_virtual_points_follow_the_real_ones(frames: Frames) -> None:
    token = frames.tokens[2]
    real = read_points(frames, token, 2)
    virtual = np.load(folder_of(frames) / f"{token}.npy")
    assert real.shape[1] == 5
    points = read_points(frames, token, 2, INPUTS)
    assert points.dtype == np.float32
    assert points.shape == (len(real) + len(virtual), 17)
    np.testing.assert_array_equal(points[: len(real), :5], real)
    assert not points[: len(real), 5:].any()
    np.testing.assert_array_equal(points[len(real) :], virtual)


def test_bev_augmentation_moves_them_with_the_boxes(frames: Frames) -> None:
    augment = AugmentConfig(bev_rotation=0.39, bev_scale=(0.95, 1.05), bev_flip_x=True)
    token = frames.tokens[1]
    sample = SampleReader(frames, INPUTS, augment, 0).read(token, 3)
    clean = SampleReader(frames, INPUTS, None, 0).read(token)
    assert clean.points_P5 is not None
    assert sample.points_P5 is not None
    expected = transform_points(clean.points_P5, sample.bev_aug_44)
    np.testing.assert_allclose(sample.points_P5, expected, atol=1e-4)
    virtual = sample.points_P5[sample.points_P5[:, 16] == 1]
    boxes = frames.labels(token)[0]
    assert len(virtual) == PER_BOX * len(boxes) > 0
    assert sample.boxes_N9 is not None
    seen: np.ndarray = frames.seen(token)
    inside = inside_footprints(virtual[:, :2].astype(np.float64), sample.boxes_N9)
    assert inside.any(axis=1)[np.repeat(seen, PER_BOX)].all()


def test_an_empty_file_adds_nothing(frames: Frames) -> None:
    token = frames.tokens[0]
    np.save(folder_of(frames) / f"{token}.npy", np.zeros((0, 17), np.float32))
    assert len(read_points(frames, token, 2, INPUTS)) == len(read_points(frames, token, 2))


def test_a_missing_file_is_named(frames: Frames) -> None:
    first, second, third = (folder_of(frames) / f"{token}.npy" for token in frames.tokens[:3])
    third.unlink()
    with pytest.raises(DataError, match=f"{third}: missing virtual points. Every keyframe"):
        read_points(frames, frames.tokens[2], 2, INPUTS)
    read_points(frames, frames.tokens[0], 2, INPUTS)
    first.unlink()
    second.unlink()
    with pytest.raises(DataError, match=r"\.npy: missing virtual points \(3 files of selected"):
        frames.identity(virtual_points=True)


def test_no_folder_is_a_wrong_configuration(tiny_frames: Frames) -> None:
    with pytest.raises(ConfigError, match=r"Give dataset\.virtual_points=FOLDER"):
        read_points(tiny_frames, tiny_frames.tokens[0], 2, INPUTS)
    with pytest.raises(ConfigError, match=r"Give dataset\.virtual_points=FOLDER"):
        tiny_frames.identity(virtual_points=True)


def values(num: int = 3, width: int = 17) -> np.ndarray:
    return np.zeros((num, width), np.float32)


def spoilt(row: int, column: int, value: float) -> np.ndarray:
    points = values()
    points[row, column] = value
    return points


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (values(3, 15), r"are float32 \(3, 15\)"),
        (values(3, 5), r"are float32 \(3, 5\)"),
        (values().astype(np.float64), r"are float64 \(3, 17\)"),
        (values().ravel(), r"are float32 \(51,\)"),
        (spoilt(1, 2, np.nan), "hold NaN or infinity"),
        (spoilt(1, 7, 1.5), "a score outside 0..1"),
        (spoilt(2, 15, -0.1), "a score outside 0..1"),
        (spoilt(2, 16, 0.5), "`virtual` is neither 0 nor 1"),
        (spoilt(2, 16, -1), "`virtual` is neither 0 nor 1"),
    ],
)
def test_another_layout_is_refused(content: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "abc.npy", content)
    with pytest.raises(DataError, match=words) as caught:
        read_virtual(tmp_path, "abc")
    assert f"{tmp_path / 'abc.npy'}: virtual points" in str(caught.value)
    assert "Expected float32 (M, 17): x, y, z, intensity, seconds, car," in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", pickle.dumps([1, 2])])
def test_another_format_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "abc.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"abc\.npy: cannot read virtual points"):
        read_virtual(tmp_path, "abc")


def test_an_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "abc.npz", values())
    (tmp_path / "abc.npz").rename(tmp_path / "abc.npy")
    with pytest.raises(DataError, match="an archive of several arrays"):
        read_virtual(tmp_path, "abc")


def test_the_identity_covers_every_byte_of_the_selected_frames(
    frames: Frames, tmp_path: Path
) -> None:
    before = frames.identity(virtual_points=True)
    assert "virtual_points" not in frames.identity()
    moved = Path(shutil.copytree(folder_of(frames), tmp_path / "moved"))
    assert virtual_digest(moved, frames.tokens[::-1]) == before["virtual_points"]
    path = moved / f"{frames.tokens[2]}.npy"
    points = np.load(path)
    points[-1, 2] = np.nextafter(points[-1, 2], np.float32(9))
    np.save(path, points)
    assert virtual_digest(moved, frames.tokens) != before["virtual_points"]
    others = frames.keep([token for token in frames.tokens if token != frames.tokens[2]])
    known = others.identity(virtual_points=True)["virtual_points"]
    assert virtual_digest(moved, others.tokens) == known


def test_unchanged_files_are_not_read_again(
    frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = virtual_digest(folder_of(frames), frames.tokens)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert virtual_digest(folder_of(frames), frames.tokens) == first


def test_selections_keep_the_folder(frames: Frames) -> None:
    for derived in (
        frames.keep(frames.tokens[:2]),
        frames.in_order(frames.tokens[::-1]),
        pickle.loads(pickle.dumps(frames)),
    ):
        assert derived.virtual_points == frames.virtual_points


def test_the_folder_is_taken_literally() -> None:
    config = compose(ExtractConfig, ["dataset.virtual_points=${a}/0012"])
    assert config.dataset.virtual_points == "${a}/0012"
    assert compose(ExtractConfig, ["dataset.virtual_points="]).dataset.virtual_points is None
