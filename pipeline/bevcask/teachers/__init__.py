"""Teachers: where targets come from."""

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from bevcask.config import Config, TeacherConfig
    from bevcask.teachers.base import Teacher


def build_teacher(config: "TeacherConfig", seed: int) -> "Teacher":
    """Build the teacher a configuration names; weights are loaded later by `Teacher.load`.

    Args:
        config: the `teacher` section.
        seed: seed of `checkpoint=random`.

    Raises:
        ConfigError: unknown type or architecture, or a key that this teacher does not have.
    """
    plugin, own = find_teacher(config)
    return plugin(own, seed)


def find_teacher(config: "TeacherConfig") -> "tuple[type[Teacher], Config]":
    """Return the class of a teacher, and its own validated configuration; see `build_teacher`."""
    from bevcask.config import build_config

    section: dict[str, Any] = config.model_dump(exclude_unset=True) | {"type": config.type}
    plugin, own = build_config("teacher", section, "teacher")
    return cast("type[Teacher]", plugin), own
