"""StreamPETR and RayDN compute what the released classes computed; see `streampetr_golden`.

Every array of the four evaluated frames is compared, and `compared` holds that none is left out.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from bevcask.detectors.base import MEAN_RGB, STD_RGB, Memory, Output
from bevcask.detectors.blocks.dense_view import Tokens
from bevcask.detectors.blocks.petr_head import Decoded
from bevcask.detectors.blocks.point_view import PointRead
from bevcask.detectors.blocks.query_memory import Rows
from detectors.bevformer_golden import MISSING
from detectors.streampetr_golden import FRAMES, MODELS, THERE, Golden

pytestmark = pytest.mark.skipif(not THERE, reason=MISSING)
ROWS = ("mem_{}_emb", "mem_{}_ref", "mem_time_{}", "mem_{}_pose", "mem_{}_velo")


class Run:
    """A golden model shown its frames in turn, with what its memory and its views said."""

    def __init__(self, model: str) -> None:
        self.golden = Golden(model)
        self.compared: set[str] = set()
        self.recalled: list[Rows] = []
        self.said: list[Decoded] = []
        self.seen: list[object] = []
        self.read: list[dict[str, Tensor]] = []
        memory: Memory | None = None
        head = self.golden.detector.head
        with torch.inference_mode():
            for number in range(FRAMES):
                frame, known = self.golden.frame(number), self.golden.known(number)
                self.recalled.append(head.recall(frame, memory, known if memory else None))
                self.seen.append(head.view(self.golden.maps(number), frame))
                handles = list(self.listen())
                self.said.append(self.golden.look(number, memory))
                for handle in handles:
                    handle.remove()
                memory = self.said[-1].memory

    def listen(self) -> Iterator[torch.utils.hooks.RemovableHandle]:
        said: dict[str, Tensor] = {}
        self.read.append(said)
        for number, layer in enumerate(self.golden.detector.head.layers):
            if isinstance(layer.read, PointRead):

                def points(
                    read: nn.Module, given: tuple[Tensor, ...], number: int = number
                ) -> None:
                    assert isinstance(read, PointRead)
                    said[f"keypoints/{number}"] = read.key_points(given[0], given[2])

                def sampled(_: nn.Module, given: tuple[Tensor, ...], number: int = number) -> None:
                    said[f"sampled/{number}"] = given[0]

                yield layer.read.register_forward_pre_hook(points)
                yield layer.read.output.register_forward_pre_hook(sampled)

    def close(self, found: Tensor, key: str) -> None:
        self.compared.add(key)
        self.golden.close(found, key)

    def rows(self, rows: Rows, key: str) -> None:
        for own, name in zip(rows, ROWS, strict=True):
            self.close(own, f"{key}/{name}")


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def memory_before(run: Run) -> None:
    for number, rows in enumerate(run.recalled):
        for own, name in zip(rows, ROWS, strict=True):
            run.close(own, f"eval/{number}/{name.format('pre')}")


def memory_after(run: Run) -> None:
    for number, said in enumerate(run.said):
        for own, name in zip(said.memory.values(), ROWS, strict=True):
            run.close(own, f"eval/{number}/{name.format('post')}")
        assert said.memory["time"].dtype == torch.float64


def rows_of_the_decoder(run: Run) -> None:
    head = run.golden.detector.head
    for number, rows in enumerate(run.recalled):
        asked, others = head.ask(rows)
        key = f"eval/{number}/"
        run.close(asked.content_BQC, f"{key}q_content")
        run.close(asked.position_BQC, f"{key}q_pos")
        run.close(asked.place_BQ3, f"{key}q_ref")
        run.close(others.content_BQC, f"{key}tmp_content")
        run.close(others.position_BQC, f"{key}tmp_pos")


def cameras(run: Run) -> None:
    for number, seen in enumerate(run.seen):
        key = f"eval/{number}/"
        if f"{key}tokens" not in run.golden:
            continue
        if isinstance(seen, Tokens):
            run.close(seen.value_BTC, f"{key}tokens")
            run.close(seen.position_BTC, f"{key}pe_gated")
            run.close(seen.raw_BTC, f"{key}pe_raw")
            run.close(seen.cone_BTK, f"{key}cone")
            continue
        maps = [own.flatten(0, 1).flatten(2).transpose(1, 2) for own in seen.maps_BVCHW]
        run.close(torch.cat(maps, dim=1), f"{key}tokens")


def key_points(run: Run) -> None:
    for number, read in enumerate(run.read):
        for name, own in read.items():
            if f"eval/{number}/{name}" in run.golden:
                run.close(own, f"eval/{number}/{name}")


def layers(run: Run) -> None:
    for number, said in enumerate(run.said):
        run.close(said.states_LBQC, f"eval/{number}/dec")
        run.close(said.logits_LBQK, f"eval/{number}/cls")
        run.close(said.codes_LBQE, f"eval/{number}/reg")


def boxes(run: Run) -> None:
    for number, said in enumerate(run.said):
        preds = {"logits": said.logits_LBQK, "codes": said.codes_LBQE}
        for lane, found in enumerate(run.golden.detector.decode(Output({}, preds))):
            run.close(found.boxes_N9, f"eval/{number}/box/{lane}")
            run.close(found.scores_N, f"eval/{number}/score/{lane}")
            key = f"eval/{number}/label/{lane}"
            run.compared.add(key)
            assert torch.equal(found.classes_N, run.golden[key].long())


PARTS = (memory_before, memory_after, rows_of_the_decoder, cameras, key_points, layers, boxes)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_evaluation(run: Run, part) -> None:  # type: ignore[no-untyped-def]
    part(run)


def test_every_array_is_compared(run: Run) -> None:
    run.compared.clear()
    for part in PARTS:
        part(run)
    assert run.compared == set(run.golden.keys("eval/"))


def test_images(run: Run) -> None:
    detector = run.golden.detector
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN_RGB, STD_RGB))
    with torch.inference_mode():
        maps = detector.backbone((run.golden["img/rgb"] - mean) / std)
        pyramid = detector.pyramid([maps[level] for level in detector.config.backbone.levels])
    for level in detector.config.backbone.levels:
        run.close(maps[level], f"img/{level.upper()}")
    for number, own in enumerate(pyramid):
        run.close(own, f"img/P{number}")
