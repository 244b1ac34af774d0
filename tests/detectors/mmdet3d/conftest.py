"""The mmdet3d tier: skipped where mmdet3d is not, failing where BEVCASK_REQUIRE_MMDET3D is set."""

import os

import pytest

# Warnings of others, at import and in calls we cannot change. Ours stay errors.
THIRD_PARTY = (
    "ignore:`torch.jit:DeprecationWarning",  # mmengine, mmdet, spconv
    "ignore:``MultiScaleDeformableAttention`` has been moved:ImportWarning",  # mmcv
    "ignore:To copy construct from a tensor:UserWarning:"
    "mmdet3d.models.task_modules.coders.centerpoint_bbox_coders",
    "ignore:To copy construct from a tensor:UserWarning:mmdet3d.models.detectors.imvoxelnet",
    "ignore:DeprecationWarning. pos_bboxes is deprecated:UserWarning",  # mmdet's sampler
    "ignore:dir_offset and dir_limit_offset:UserWarning",  # mmdet3d's anchor head
    "ignore:torch.meshgrid:UserWarning",  # mmdet3d's priors
    "ignore:Using a non-tuple sequence for multidimensional:UserWarning",  # spconv
    "ignore:'locale.getdefaultlocale' is deprecated:DeprecationWarning",  # ccimport
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("mmdet3d"):
            for warning in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session", autouse=True)
def mmdet3d_is_here() -> None:
    from bevcask.detectors.mmdet3d.recipe import require
    from bevcask.errors import MissingDependencyError

    try:
        require()
    except MissingDependencyError as error:
        if os.environ.get("BEVCASK_REQUIRE_MMDET3D"):
            pytest.fail(str(error))
        pytest.skip(str(error))
