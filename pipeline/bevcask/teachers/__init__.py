"""Teachers: where targets come from."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bevcask.config import TeacherConfig
    from bevcask.teachers.base import Teacher


def build_teacher(config: "TeacherConfig", seed: int) -> "Teacher":
    """Build the teacher a configuration names; weights are loaded later by `Teacher.load`.

    Args:
        config: the `teacher` section.
        seed: seed of `checkpoint=random`.

    Raises:
        ConfigError: unknown type or architecture.
    """
    from bevcask.errors import ConfigError, UnknownNameError
    from bevcask.registry import load_class

    try:
        plugin = load_class("teacher", config.type)
    except UnknownNameError as error:
        raise ConfigError(f"teacher.type: {error}") from error
    teacher: Teacher = plugin(config, seed)
    return teacher
