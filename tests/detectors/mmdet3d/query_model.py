"""A query head as a user's own project has it: mmdet's decoder over an mmdet3d CenterPoint's map.

Imported by mmengine from a config's `custom_imports`.
"""

from typing import Any

import torch
from mmdet.models.layers import DetrTransformerDecoder
from mmdet3d.registry import MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

WIDTH = 32


@MODELS.register_module()
class SmallQueryHead(BaseModule):  # type: ignore[misc]
    """Learned queries attend to a pooled BEV map; each says one box."""

    def __init__(self, in_channels: int, num_queries: int, **kwargs: Any) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, WIDTH, 1)
        self.queries = nn.Embedding(num_queries, WIDTH)
        attention = {"embed_dims": WIDTH, "num_heads": 2, "batch_first": True}
        self.decoder = DetrTransformerDecoder(
            num_layers=2,
            return_intermediate=True,
            layer_cfg={
                "self_attn_cfg": attention,
                "cross_attn_cfg": attention,
                "ffn_cfg": {"embed_dims": WIDTH, "feedforward_channels": WIDTH},
            },
        )
        self.classes = nn.Linear(WIDTH, 10)
        self.boxes = nn.Linear(WIDTH, 9)

    def forward(self, feats: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits (B, Q, 10) and box codes (B, Q, 9)."""
        pooled = nn.functional.adaptive_avg_pool2d(self.project(feats[0]), 8)
        memory = pooled.flatten(2).transpose(1, 2)
        query = self.queries.weight.expand(len(memory), -1, -1)
        states = self.decoder(
            query, memory, memory, query_pos=query, key_pos=0 * memory, key_padding_mask=None
        )
        return self.classes(states[-1]), self.boxes(states[-1])

    def predict(self, feats: list[Tensor], samples: Any, **kwargs: Any) -> list[InstanceData]:
        """Return one box a query."""
        logits, codes = self(feats)
        found = []
        for logit, code in zip(logits, codes, strict=True):
            scores, labels = logit.sigmoid().max(dim=1)
            parts = [50 * code[:, :3].tanh(), code[:, 3:6].exp(), code[:, 6:]]
            boxes = LiDARInstance3DBoxes(torch.cat(parts, dim=1), box_dim=9)
            found.append(InstanceData(bboxes_3d=boxes, scores_3d=scores, labels_3d=labels))
        return found
