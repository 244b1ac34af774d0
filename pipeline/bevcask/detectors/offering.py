"""Which shipped teachers say what: looked up where a cache lacks it."""

from collections.abc import Collection

from bevcask.detectors import find_detector
from bevcask.groups import group_members, load_group


def teachers_offering(taps: Collection[str]) -> list[str]:
    """Return the members of the teacher group whose detector has all of these taps, by name.

    Those of mmdet3d are left out: a model of it must be built before it is known what it has.
    """
    found = []
    for name in group_members("teacher"):
        section = load_group("teacher", name).get("detector", {})
        if section.get("type", "mmdet3d") == "mmdet3d":
            continue
        plugin, own = find_detector(section, f"teacher={name}")
        if set(taps) <= plugin.describe_taps(own).keys():
            found.append(name)
    return found
