"""BEVFormer computes what the released classes computed; numbers in `bevformer_golden`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bevcask.detectors.base import Batch, Output
from bevcask.detectors.bevformer import BEVFormer, since
from bevcask.detectors.bevformer_names import published_name
from bevcask.detectors.blocks.bev_attention import project_pillars
from bevcask.detectors.blocks.bevformer_encoder import travel, turn
from bevcask.detectors.blocks.set_loss import match, matching_cost, wanted
from bevcask.detectors.memory import Stream
from detectors.bevformer_golden import OURS, THEIRS, golden
from detectors.golden import BAR, FOLDER, MISSING, gap

pytestmark = pytest.mark.skipif(not (FOLDER / "bevformer_a.npz").is_file(), reason=MISSING)


class Run:
    """A golden model shown its two frames, with what every module said on the way."""

    def __init__(self, file: str, model: str, **encoder: object) -> None:
        self.golden = golden(file, model)
        self.config = self.golden.config(**encoder)
        self.detector = BEVFormer(self.config).eval()
        self.load()
        self.features: list[Tensor] = []
        self.said: list[dict[str, Tensor]] = []
        self.outputs: list[Output] = []
        self.batches: list[Batch] = []
        stream = Stream()
        for frame in range(2):
            batch = self.golden.batch(frame)
            batch = stream.recall(replace(batch, after=[None if frame == 0 else "f0"]))
            if "in/f0/fpn0" in self.golden:
                levels = range(self.config.num_levels)
                self.features = [
                    self.golden[f"in/f{frame}/fpn{n}"][OURS][None].requires_grad_() for n in levels
                ]
                self.detector._see = lambda _: self.features  # type: ignore[method-assign]
            with self.listen():
                output = self.detector(batch)
            stream.keep(batch, output.memory)
            self.outputs.append(output)
            self.batches.append(batch)

    def load(self) -> None:
        own, published = self.detector.state_dict(), self.golden.published()
        if not any(name.startswith("img_backbone.") for name in published):
            published |= {
                published_name(name): tensor
                for name, tensor in own.items()
                if name.startswith(("backbone.", "pyramid."))
            }
        self.detector.load_state_dict(self.detector.adopt(published))

    @contextmanager
    def listen(self) -> Iterator[None]:
        said: dict[str, Tensor] = {}

        def hook(name: str):  # type: ignore[no-untyped-def]
            def keep(_module: nn.Module, _given: object, found: Tensor) -> None:
                said[name] = found

            return keep

        named = dict(self.detector.named_modules())
        handles = [
            module.register_forward_hook(hook(name))
            for name, module in named.items()
            if name.startswith(("encoder.", "decoder.layers."))
        ]
        yield
        self.said.append(said)
        for handle in handles:
            handle.remove()

    def close(self, found: Tensor, key: str) -> None:
        assert gap(found.detach(), self.golden[key]) < BAR, key


@pytest.fixture(scope="module", params=["m4", "m1"])
def run(request: pytest.FixtureRequest) -> Run:
    return Run("bevformer_a.npz", request.param)


@pytest.mark.parametrize("run", ["m4"], indirect=True)
def test_images(run: Run) -> None:
    run.close(_normalised(run), "in/f0/normalised")
    maps = run.detector.backbone(_padded(run, 1))
    for number, level in enumerate(run.config.backbone.levels):
        run.close(maps[level][THEIRS], f"f1/c{number}")
    for frame in range(2):
        for level in range(run.config.num_levels):
            key = f"f{frame}/fpn{level}"
            if key in run.golden:
                run.close(run.outputs[frame].taps[f"image.level{level}"][0][THEIRS], key)


def _padded(run: Run, frame: int) -> Tensor:
    seen: list[Tensor] = []
    handle = run.detector.backbone.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run.detector(run.golden.batch(frame))
    handle.remove()
    return seen[0]


def _normalised(run: Run) -> Tensor:
    return _padded(run, 0)[THEIRS][:1]


def test_where_the_ego_went(run: Run) -> None:
    for frame, batch in enumerate(run.batches):
        assert batch.can_bus_B18 is not None
        before = None if frame == 0 else run.batches[0].can_bus_B18
        read = since(batch.can_bus_B18, before, None)
        torch.testing.assert_close(read[0], run.golden[f"f{frame}/can_bus"], atol=1e-9, rtol=0)
        shift = travel(read, run.config.grid)[0].float()
        torch.testing.assert_close(shift, run.golden[f"f{frame}/shift_xy"], atol=1e-6, rtol=0)
        run.close(run.said[frame]["encoder.can_bus"][0], f"f{frame}/can_bus_embedding")


def test_the_bev_before_is_turned(run: Run) -> None:
    centre = run.config.encoder.rotation_centre
    assert centre is not None
    degrees = run.golden["f1/can_bus"][None, 17]
    turned = turn(run.golden["f0/bev"][None], degrees, run.config.bev_size_YX, centre)
    run.close(turned[0], "f1/prev_bev_rotated")


def test_pillars(run: Run) -> None:
    for frame in range(2):
        matrices = run.detector._lidar_to_image(run.golden.batch(frame))
        padded = tuple(run.golden["in/padded_hw"].tolist())
        pillars = project_pillars(run.detector.encoder.points_QD3, matrices, padded)
        seen = pillars.seen_BVQD[0][THEIRS]
        said = run.golden[f"f{frame}/hit"]
        assert torch.equal(seen, said)
        if frame:
            places, golden_places = pillars.places_BVQD2[0][THEIRS], run.golden["f1/uv"]
            assert gap(places[said], golden_places[said]) < BAR


def test_encoder(run: Run) -> None:
    for frame in range(2):
        for layer in range(run.config.encoder.layers):
            key = f"f{frame}/enc{layer}"
            if key in run.golden:
                run.close(run.said[frame][f"encoder.layers.{layer}"][0], key)
        bev = run.outputs[frame].taps["bev.encoder"][0].flatten(1).T
        run.close(bev, f"f{frame}/bev")
    first = {"temporal": "tsa", "norms.0": "norm0", "spatial": "sca", "norms.1": "norm1"}
    for module, key in first.items():
        run.close(run.said[1][f"encoder.layers.0.{module}"][0], f"f1/enc0.{key}")


def test_decoder(run: Run) -> None:
    for frame, output in enumerate(run.outputs):
        said = run.detector.decoder(output.taps["bev.encoder"])
        run.close(said.references_LBQ3[0, 0], f"f{frame}/reference0")
        for layer in range(run.config.decoder_layers):
            states_BQC, _ = run.said[frame][f"decoder.layers.{layer}"]
            run.close(states_BQC[0], f"f{frame}/dec{layer}")
        refined = said.references_LBQ3[1:, 0]
        if len(refined):
            assert gap(refined.detach(), run.golden[f"f{frame}/references"][:-1]) < BAR
        run.close(output.preds["logits"][:, 0], f"f{frame}/cls")
        run.close(output.preds["codes"][:, 0], f"f{frame}/reg")
        run.close(output.taps["query.last"][0], f"f{frame}/dec{run.config.decoder_layers - 1}")


def test_boxes(run: Run) -> None:
    for frame, output in enumerate(run.outputs):
        (found,) = run.detector.decode(output)
        run.close(found.boxes_N9, f"f{frame}/boxes")
        run.close(found.scores_N, f"f{frame}/scores")
        assert torch.equal(found.classes_N, run.golden[f"f{frame}/labels"].long())


def test_matching(run: Run) -> None:
    labels, preds = run.golden.labels(), run.outputs[1].preds
    decoder = run.detector.decoder
    (truth,) = wanted(labels.boxes, labels.classes, decoder.low_3[:2], decoder.high_3[:2])
    run.close(truth.codes_NE, "loss/gt_code")
    for layer, assigned_Q in enumerate(run.golden["loss/assigned"]):
        logits, codes = preds["logits"][layer, 0], preds["codes"][layer, 0]
        cost = matching_cost(logits, codes, truth, run.config.loss)
        assert gap(cost.detach(), run.golden["loss/cost"][layer]) < BAR
        queries, boxes = match(logits, codes, truth, run.config.loss)
        found = torch.full_like(assigned_Q, -1)
        found[queries] = boxes.to(found.dtype)
        assert torch.equal(found, assigned_Q)


def test_losses_and_gradients(run: Run) -> None:
    batch = replace(run.batches[1], labels=run.golden.labels())
    output = run.detector(batch)
    losses = run.detector.loss(output, batch)
    last = run.config.decoder_layers - 1
    for layer in range(last + 1):
        own, theirs = ("", "") if layer == last else (f"layer{layer}/", f"d{layer}.")
        run.close(losses[f"{own}class"], f"loss/{theirs}loss_cls")
        run.close(losses[f"{own}box"], f"loss/{theirs}loss_bbox")
    watched = [output.taps["bev.encoder"]]
    watched += [output.taps[f"image.level{level}"] for level in range(run.config.num_levels)]
    named = {
        published_name(name): own
        for name, own in run.detector.named_parameters()
        if not name.startswith(("backbone.", "pyramid."))
    }
    total = torch.stack(list(losses.values())).sum()
    found = torch.autograd.grad(total, [*watched, *named.values()], allow_unused=True)
    run.close(found[0][0].flatten(1).T, "loss/grad_bev")
    for level in range(run.config.num_levels):
        run.close(found[1 + level][0][THEIRS], f"loss/grad_fpn{level}")
    gradients = dict(zip(named, found[len(watched) :], strict=True))
    norms, sums = run.golden["loss/param_grad_norm"], run.golden["loss/param_grad_sum"]
    for name, norm, total in zip(run.golden.names("loss/param_names"), norms, sums, strict=True):
        if name not in gradients:
            assert name.endswith("code_weights")
            continue
        own = gradients[name]
        assert own is not None, name
        assert abs(float(own.norm()) - float(norm)) < BAR * max(float(norms.max()), 1e-3), name
        assert abs(float(own.norm()) - float(norm)) < 2e-4 * float(norm) + 1e-6, name
        assert abs(float(own.sum()) - float(total)) < 2e-4 * float(norm) * own.numel() ** 0.5, name


@pytest.mark.parametrize("model", ["m4", "m1"])
def test_unshifted_points_of_now(model: str) -> None:
    run = Run("bevformer_a.npz", model, shift_current=False)
    run.close(run.outputs[1].taps["bev.encoder"][0].flatten(1).T, "f1_unshifted/bev")
    run.close(run.outputs[1].preds["logits"][-1, 0], "f1_unshifted/cls_last")
