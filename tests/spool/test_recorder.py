"""The recorder: one file, any framework, whole files, and nothing of the model changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from bevcask.spool import recorder as module
from bevcask.spool.recorder import Recorder, RecorderError, digest, pack

MANIFEST = {"taps": {"bev.neck": {"kind": "dense_bev", "shape": [2, 3, 3]}}}
OLD = os.environ.get("BEVCASK_OLD_PYTHON") or next(
    (found for minor in (6, 7, 8) if (found := shutil.which(f"python3.{minor}"))), None
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Conv2d(1, 2, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.drop(self.neck(image)).sum()


def recording(folder: Path, network: nn.Module | None = None) -> tuple[Recorder, nn.Module]:
    network = network or Network().eval()
    recorder = Recorder(str(folder), MANIFEST)
    recorder.watch(network, {"bev.neck": "neck"})
    return recorder, network


def test_what_a_module_said_is_what_lies_there(tmp_path: Path) -> None:
    recorder, network = recording(tmp_path)
    images = torch.randn(2, 1, 3, 3)
    random = torch.get_rng_state()
    network(images)
    recorder.put(["a", "b"])
    recorder.finish()
    assert torch.equal(torch.get_rng_state(), random)
    assert not network.training
    for token, image in zip("ab", images, strict=True):
        found = load_file(tmp_path / "samples" / f"{token}.safetensors")
        np.testing.assert_array_equal(found["bev.neck"], network.neck(image[None])[0].detach())
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert told["teacher"]["weights"] == digest(network)
    assert told["recorder"] == module.VERSION
    assert json.loads((tmp_path / "finished.json").read_text()) == {"samples": 2}
    assert not network.neck._forward_hooks


def test_what_is_changed_in_place_later_is_kept_as_it_was(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True)).eval()
    recorder = Recorder(str(tmp_path), MANIFEST)
    recorder.watch(network, {"bev.neck": "0"})
    image = torch.randn(1, 1, 3, 3)
    network(image)
    recorder.put(["a"])
    found = load_file(tmp_path / "samples" / "a.safetensors")["bev.neck"]
    np.testing.assert_array_equal(found, network[0](image)[0].detach())
    assert found.min() < 0


def test_a_batch_is_parted_and_half_precision_is_kept(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path), {"taps": {"a": {}, "b": {}}})
    recorder.put(["x", "y"], {"a": torch.ones(2, 3).half(), "b": [np.ones((n, 2)) for n in (1, 4)]})
    recorder.put(["z"], {"a": torch.ones(1, 3).bfloat16(), "b": [np.ones((0, 2))]})
    found = load_file(tmp_path / "samples" / "y.safetensors")
    assert found["a"].dtype == np.float16
    assert found["b"].shape == (4, 2)
    assert load_file(tmp_path / "samples" / "z.safetensors")["a"].dtype == np.float32


def test_a_model_that_trains_is_refused(tmp_path: Path) -> None:
    recorder, network = recording(tmp_path)
    network.drop.train()
    network(torch.randn(1, 1, 3, 3))
    with pytest.raises(RecorderError, match=r"training mode \(drop\).*model\.eval"):
        recorder.put(["a"])
    assert not recorder.has(["a"])


def test_the_same_sample_is_said_once(tmp_path: Path) -> None:
    recorder, network = recording(tmp_path)
    image = torch.randn(1, 1, 3, 3)
    for _ in range(2):
        network(image)
        recorder.put(["a"])  # the same bytes: fine
    network(image + 1)
    with pytest.raises(RecorderError, match="sample a was recorded before with other bytes"):
        recorder.put(["a"])


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    recorder, network = recording(tmp_path)
    with pytest.raises(RecorderError, match=r"no module 'head\.neck'.*named alike: neck"):
        recorder.watch(network, {"bev.neck": "head.neck"})
    with pytest.raises(RecorderError, match=r"nothing was said of bev\.neck"):
        recorder.put(["a"])
    with pytest.raises(RecorderError, match="2 values for 1 samples"):
        recorder.put(["a"], {"bev.neck": np.zeros((2, 2, 3, 3))})
    with pytest.raises(RecorderError, match=r"bev\.neck is complex64"):
        recorder.put(["a"], {"bev.neck": np.zeros((1, 2, 3, 3), np.complex64)})
    other = Recorder(str(tmp_path), {**MANIFEST, "memory": "scene"})
    with pytest.raises(RecorderError, match="begun with another memory"):
        other.put(["b"], {"bev.neck": np.zeros((1, 2, 3, 3))})


def test_packed_bytes_are_safetensors(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {name: (9 * random.random((3, 4, 2))).astype(name) for name in module._DTYPES}
    path = tmp_path / "a.safetensors"
    path.write_bytes(pack(arrays))
    found = load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


STUB = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from bevcask_recorder import Recorder


class Tensor(object):  # of a framework that nobody has heard of
    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array


recorder = Recorder(sys.argv[2], {"taps": {"bev.neck": {}}}, config="text")
made = 0
for number in range(9):
    token = "t%d" % number
    if not recorder.has([token]):
        recorder.put([token], {"bev.neck": Tensor(np.full((1, 2, 3), number, np.float32))})
        made += 1
    if len(sys.argv) > 3 and number == 4:
        import os
        open(os.path.join(sys.argv[2], "samples", "t5.safetensors.1.part"), "wb").write(b"half")
        os._exit(9)
recorder.finish()
print(made, sys.version_info[:2])
"""


@pytest.mark.parametrize("python", [sys.executable, OLD])
def test_it_runs_on_an_old_python_and_goes_on_after_a_kill(
    tmp_path: Path, python: str | None
) -> None:
    if python is None:
        pytest.skip("no python3.6, 3.7 or 3.8 on the path, nor BEVCASK_OLD_PYTHON")
    shutil.copy(str(module.__file__), tmp_path / "bevcask_recorder.py")
    own: dict[str, Any] = {"capture_output": True, "text": True}
    if subprocess.run([python, "-c", "import numpy"], **own, check=False).returncode:
        pytest.skip(f"{Path(python).name} has no numpy")
    given = [python, "-c", STUB, str(tmp_path), str(tmp_path / "spool")]
    assert subprocess.run([*given, "die"], **own, check=False).returncode == 9
    done = subprocess.run(given, **own, check=True)
    assert done.stdout.startswith("4 ")
    files = sorted((tmp_path / "spool" / "samples").glob("*.safetensors"))
    assert len(files) == 9
    for number, path in enumerate(files):
        assert (load_file(path)["bev.neck"] == number).all()


def test_what_the_command_prints_is_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    from bevcask.cli import recorder

    recorder()
    assert capfd.readouterr().out == Path(str(module.__file__)).read_text()
