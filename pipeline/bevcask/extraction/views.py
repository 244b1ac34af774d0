"""Replayable views: may a teacher be shown several of each frame?"""

import logging

from bevcask.errors import ConfigError
from bevcask.targets.kinds import changes_pixels
from bevcask.targets.plan import Plan
from bevcask.teachers.base import Teacher
from bevcask.verbs import ExtractConfig

_log = logging.getLogger(__name__)


def check_views(config: ExtractConfig, what: Plan, teacher: Teacher) -> None:
    """Refuse views that say nothing, or that this teacher cannot be shown.

    Raises:
        ConfigError: what to say instead.
    """
    views = f"store.views={config.store.views}"
    clean = [spec.name for spec in what.specs if spec.tap.in_order and what.roles[spec.key]]
    viewed = any(spec.view for spec in what.specs)
    if clean and not viewed:
        raise ConfigError(
            f"{views}: this teacher remembers the frames before, a scene cannot be shown in "
            f"several views at once, and {', '.join(clean)} depends on memory. Use store.views=0, "
            "or show it windows: teacher.memory=window."
        )
    if clean:
        _log.warning(
            "%s: %s depends on the memory of whole scenes and is stored of the clean frames; "
            "image levels are stored of each view. To have everything of each view, show the "
            "teacher windows: teacher.memory=window.",
            views,
            ", ".join(clean),
        )
    if viewed and not teacher.inputs().image_size_HW:
        raise ConfigError(
            f"{views}: this teacher is shown nothing here; what it says of the clean frames is "
            "there already. Use store.views=0."
        )
    if not viewed:
        _log.info("%s changes nothing: this teacher does not look at images", views)
    elif not changes_pixels(config.augment):
        raise ConfigError(
            f"{views}: all views would be alike, for augment changes no image. Give what the "
            "student will: augment.resize, crop, image_flip, image_rotation, photometric, "
            "grid_mask; or store.views=0."
        )
