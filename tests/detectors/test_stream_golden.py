"""StreamPETR and RayDN compute what the released classes computed; numbers in `stream_golden`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bevcask.detectors import stream_family
from bevcask.detectors.base import MEAN_RGB, STD_RGB, Batch, Output
from bevcask.detectors.blocks.query_denoising import Draws, Noisy, disturb
from bevcask.detectors.blocks.set_loss import Wanted, match, matching_cost
from bevcask.detectors.memory import Stream
from bevcask.detectors.stream_family import StreamDetector
from bevcask.detectors.stream_names import published_copies, published_name
from bevcask.targets.metric_code import encode_metric_boxes
from detectors.golden import BAR, FOLDER, MISSING, gap
from detectors.stream_golden import DETECTORS, Golden, queue

GRADIENTS = 1e-4  # of the largest element

pytestmark = pytest.mark.skipif(not (FOLDER / "raydn_a.npz").is_file(), reason=MISSING)


class Run:
    """A golden detector shown its four frames."""

    def __init__(self, file: str) -> None:
        self.golden = Golden(file)
        self.config = self.golden.config

    def shown(self, detector: StreamDetector) -> "list[tuple[Batch, Output]]":
        found, stream = [], Stream()
        for frame in self.golden.frames:
            batch = stream.recall(self.golden.batch(frame))
            output = detector(batch)
            stream.keep(batch, output.memory)
            found.append((batch, output))
        return found

    def close(self, found: Tensor, key: str, bar: float = BAR) -> None:
        assert gap(found.detach(), self.golden[key]) < bar, key


@pytest.fixture(scope="module", params=DETECTORS)
def run(request: pytest.FixtureRequest) -> Run:
    return Run(request.param)


def test_frames_one_after_the_other(run: Run) -> None:
    """Two lanes, one with a new scene in the middle."""
    detector = run.golden.make().eval()
    with torch.no_grad():
        shown = run.shown(detector)
    for frame, (_, output) in enumerate(shown):
        key = f"eval/{frame}"
        states = output.taps["query.states"].unflatten(1, (run.config.layers, -1))
        run.close(states.transpose(0, 1), f"{key}/dec")
        run.close(output.preds["logits"], f"{key}/cls")
        run.close(output.preds["codes"], f"{key}/reg")
        run.close(output.taps["query.references"], f"{key}/q_ref")
        for name, said in queue(run.golden, f"{key}/post", run.config.memory).items():
            assert gap(output.memory[name], said) < BAR, name
        assert torch.equal(
            output.memory["seconds"], run.golden[f"{key}/mem_time_post"][:, : run.config.memory]
        )
        for lane, found in enumerate(detector.decode(output)):
            run.close(found.boxes_N9, f"{key}/box/{lane}")
            run.close(found.scores_N, f"{key}/score/{lane}")
            assert torch.equal(found.classes_N, run.golden[f"{key}/label/{lane}"].long())


def test_what_the_decoder_starts_from_and_looks_at(run: Run) -> None:
    detector, asked, seen = run.golden.make().eval(), [], []
    detector.queries.register_forward_hook(lambda _m, given, found: asked.append((given, found)))
    for name in ("positions", "modulation"):
        if hasattr(detector, name):
            module = getattr(detector, name)
            module.register_forward_hook(lambda _m, _g, found: seen.append(found))
    with torch.no_grad():
        shown = run.shown(detector)
    for frame, ((rows, _), start) in enumerate(asked):
        key = f"eval/{frame}"
        pre = queue(run.golden, f"{key}/pre", run.config.memory)
        names = ("states", "places", "seconds", "poses", "velocities")
        for name, own in zip(names, rows, strict=True):
            assert gap(own.double(), pre[name].double()) < BAR, name
        run.close(start.contents_BQC, f"{key}/q_content")
        run.close(start.positions_BQC, f"{key}/q_pos")
        run.close(start.older_contents_BMC, f"{key}/tmp_content")
        run.close(start.older_positions_BMC, f"{key}/tmp_pos")
    if "eval/0/pe_gated" in run.golden:
        for frame in (0, 3):
            features, positions = (own.flatten(1, 2) for own in seen[frame])
            run.close(features, f"eval/{frame}/tokens")
            run.close(positions, f"eval/{frame}/pe_gated")
        return
    levels = [own.flatten(0, 1).flatten(2).transpose(1, 2) for own in seen[0]]
    run.close(torch.cat(levels, dim=1), "eval/0/tokens")
    offsets = shown[0][1].taps["query.offsets"].unflatten(1, (run.config.layers, -1))
    low, high = (run.golden.make().queries.low_3, run.golden.make().queries.high_3)
    places = shown[0][1].taps["query.references"] * (high - low) + low
    for layer in range(run.config.layers):
        points = places[:, :, None] + offsets[:, layer].unflatten(-1, (-1, 3))
        run.close(points, f"eval/0/keypoints/{layer}")


def test_images(run: Run) -> None:
    detector = run.golden.make().eval()
    mean, std = (torch.tensor(own)[:, None, None] for own in (MEAN_RGB, STD_RGB))
    with torch.no_grad():
        maps = detector.backbone((run.golden["img/rgb"] - mean) / std)
        found = detector.pyramid([maps[level] for level in run.config.backbone.levels])
    for level in run.config.backbone.levels:
        run.close(maps[level], f"img/{level.upper()}")
    for number, own in enumerate([found] if isinstance(found, Tensor) else found):
        run.close(own, f"img/P{number}")


def test_denoising_queries(run: Run) -> None:
    for frame in run.golden.frames:
        batch, key = run.golden.batch(frame), f"train/{frame}/dn"
        assert batch.labels is not None
        noisy = disturb(
            batch.labels.boxes,
            batch.labels.classes,
            run.golden.draws(frame),
            run.config,
            run.golden.cameras(batch),
        )
        padding = int(run.golden[f"{key}/pad_size"])
        assert noisy.references_BN3.shape[1] == padding
        if not padding:
            assert noisy.blocked_QM is None
            assert not bool(run.golden[f"{key}/attn_mask"].any())
            continue
        _same_layout(run, noisy, key, padding)


def _same_layout(run: Run, noisy: Noisy, key: str, padding: int) -> None:
    assert noisy.blocked_QM is not None
    said = run.golden[f"{key}/ref_padded"][:, :padding]
    assert gap(noisy.references_BN3, said) < BAR
    assert torch.equal(noisy.blocked_QM, run.golden[f"{key}/attn_mask"].bool())
    assert torch.equal(noisy.labels_R, run.golden[f"{key}/known_labels"].long())
    rows = run.golden[f"{key}/lane"].long() * padding + run.golden[f"{key}/slot"]
    assert torch.equal(noisy.rows_R, rows)
    run.close(noisy.boxes_R9, f"{key}/known_boxes")


def test_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss, every gradient; batch norms of the head in the images go on where they were."""
    golden, stream, detector = run.golden, Stream(), run.golden.make().train()
    for frame in golden.frames:
        batch = stream.recall(golden.batch(frame))
        monkeypatch.setattr(stream_family, "draw", _drawn(golden.draws(frame)))
        maps = [own.requires_grad_() for own in golden.features(batch)]
        monkeypatch.setattr(detector, "_maps", lambda _, maps=maps: maps)
        detector.zero_grad()
        output = detector(batch)
        stream.keep(batch, output.memory)
        key = f"train/{frame}"
        _same_outputs(run, output, key)
        losses = detector.loss(output, batch)
        said = {name: golden[f"{key}/loss/{name}"] for name in golden.names(f"{key}/loss/")}
        for name, own in losses.items():
            assert gap(own.detach(), said.pop(_released(name, said))) < BAR, name
        assert not said
        total = torch.stack(list(losses.values())).sum()
        run.close(total, f"{key}/loss_total")
        total.backward()
        for level, own in enumerate(maps):
            place = f"{key}/grad_feat{level if len(maps) > 1 else ''}"
            assert own.grad is not None
            run.close(own.grad, place, GRADIENTS)
        _same_gradients(run, detector, f"{key}/grad/")
        for name in golden.names(f"{key}/bn_after/"):
            own = detector.state_dict()[_tower_norm(name)]
            run.close(own, f"{key}/bn_after/{name}")


def _drawn(draws: Draws) -> Callable[[Any, Any], Draws]:
    return lambda _boxes, _settings: draws


def _tower_norm(name: str) -> str:
    level, block, kind = name.split(".")[1], int(name.split(".")[2]), name.rpartition(".")[2]
    return f"image_head.sort_towers.{level}.{3 * block + 1}.{kind}"


def _same_outputs(run: Run, output: Output, key: str) -> None:
    golden, preds = run.golden, output.preds
    run.close(preds["logits"], f"{key}/cls")
    run.close(preds["codes"], f"{key}/reg")
    for name, said in queue(golden, f"{key}/post", run.config.memory).items():
        assert gap(output.memory[name], said) < BAR, name
    if f"{key}/dn/cls" in golden:
        padding = int(golden[f"{key}/dn/pad_size"])
        rows = golden[f"{key}/dn/lane"].long() * padding + golden[f"{key}/dn/slot"]
        for own, theirs in (("logits", "cls"), ("codes", "reg")):
            said = golden[f"{key}/dn/{theirs}"].flatten(1, 2)[:, rows]
            assert gap(preds[f"denoising/{own}"].detach(), said) < BAR, own


_IMAGE = {
    "class": "enc_loss_cls",
    "box": "enc_loss_bbox",
    "overlap": "enc_loss_iou",
    "heat": "centerness_losses",
    "object": "enc_loss_obj",
}


def _released(name: str, said: dict[str, Tensor]) -> str:
    """Return what a loss is called in the release."""
    *place, term = name.split("/")
    if place == ["image"]:
        if term == "centre":
            return "centers2d_losses" if "centers2d_losses" in said else "enc_loss_centers2d"
        return _IMAGE[term]
    layer = next((f"d{own.removeprefix('layer')}." for own in place if own != "denoising"), "")
    kind = {"class": "cls", "box": "bbox"}[term]
    return f"{layer}{'dn_' if 'denoising' in place else ''}loss_{kind}"


def _same_gradients(run: Run, detector: StreamDetector, prefix: str) -> None:
    said, held = run.golden.names(prefix), set()
    for name, parameter in detector.named_parameters():
        for copy in published_copies(published_name(name)):
            if copy in said:
                found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                run.close(found, f"{prefix}{copy}", GRADIENTS)
                held.add(copy)
    assert held == set(said)


def test_matching() -> None:
    """Codes are weighed on both sides before they are compared, velocities not at all."""
    run = Run("streampetr_a")
    golden, config = run.golden, run.config.loss
    weights = torch.tensor(config.code_weights)
    codes = encode_metric_boxes(golden["match3d/gt_boxes"])
    truth = Wanted(golden["match3d/gt_labels"].long(), codes)
    logits, said = golden["match3d/cls"], golden["match3d/reg"]
    cost = matching_cost(logits, said, truth, config, weights)
    run.close(cost, "match3d/cost")
    queries, boxes = match(logits, said, truth, config, weights)
    found = torch.full((len(logits),), -1)
    found[queries] = boxes
    assert torch.equal(found, golden["match3d/assigned"].long())


def test_assignments(run: Run) -> None:
    for frame in run.golden.frames:
        batch, key = run.golden.batch(frame), f"train/{frame}"
        assert batch.labels is not None
        weights = torch.tensor(run.config.loss.code_weights)
        for lane, boxes in enumerate(batch.labels.boxes):
            truth = Wanted(batch.labels.classes[lane], encode_metric_boxes(boxes))
            for layer in range(run.config.layers):
                logits, codes = (run.golden[f"{key}/{n}"][layer, lane] for n in ("cls", "reg"))
                rows, given = match(logits, codes, truth, run.config.loss, weights)
                found = torch.full((len(logits),), -1)
                found[rows] = given
                assert torch.equal(found, run.golden[f"{key}/assign3d"][layer, lane].long())


def test_poses_in_double_precision_are_another_network() -> None:
    """Published weights are used to float32; that is why it is a switch."""
    golden = Golden("raydn_a")
    detector = golden.make().eval()
    exact = [golden.poses(golden.batch(frame)) for frame in golden.frames]
    inverse = [torch.linalg.inv(own.to_global_B44.double()) for own in exact]
    detector._poses = lambda batch: replaced(exact, inverse, batch)  # type: ignore[method-assign]
    stream = Stream()
    with torch.no_grad():
        for frame in golden.frames[:2]:
            batch = stream.recall(golden.batch(frame))
            output = detector(batch)
            stream.keep(batch, output.memory)
    assert gap(output.preds["logits"], golden["eval/1/cls"]) > BAR


def replaced(exact, inverse, batch):  # type: ignore[no-untyped-def]
    frame = int(batch.tokens[0].partition(".")[0])
    return exact[frame]._replace(
        to_global_B44=exact[frame].to_global_B44.double(), from_global_B44=inverse[frame]
    )
