#!/usr/bin/env bash
# Adds mmdet3d 1.4 to a bevcask environment: mmdet3d.sh ENVIRONMENT. Run it with `make mmdet3d`.
#
# mmcv has no wheel with compiled ops for current torch, so one is built here, once, and kept in
# BEVCASK_WHEELS. FORCE_CUDA=1 builds the CUDA ops too: it needs nvcc of torch's CUDA version, and
# SPCONV=spconv-cu126 (or the package of your CUDA version) in place of the CPU build.
set -euo pipefail
cd "$(dirname "$0")"

python=$(cd "$1" && pwd)/bin/python
cuda=${FORCE_CUDA:-0}
jobs=${MAX_JOBS:-$(nproc)}
spconv=${SPCONV:-spconv}
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

# What the ops were compiled against decides whether a wheel may be used again.
build=torch$("$python" -c 'import torch; print(torch.__version__)')-cuda$cuda
wheels=${BEVCASK_WHEELS:-$HOME/.cache/bevcask/wheels}/$build
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')

# mmcv, mmdet and mmengine import pkg_resources, which newer setuptools dropped.
pip install -c constraints-mmdet3d.txt setuptools wheel

if ! compgen -G "$wheels/mmcv-2.1.0-$tag-*.whl" >/dev/null; then
  echo "mmcv: compiling its ops, once; about 7 minutes on 2 cores -> $wheels"
  pip install ninja psutil
  # Without --no-build-isolation the build finds no torch and yields, silently, an mmcv without ops.
  MMCV_WITH_OPS=1 FORCE_CUDA=$cuda MAX_JOBS=$jobs CFLAGS=-g0 \
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps \
    --no-binary mmcv --no-cache-dir -w "$wheels" mmcv==2.1.0
else
  echo "mmcv: using the wheel in $wheels; about 2 minutes for the rest"
fi

# Their own requirements name packages that are never needed here (open3d alone is 900 MB) and an
# older mmdet, so what they import is listed.
pip install -c constraints.txt -c constraints-mmdet3d.txt \
  addict yapf rich termcolor numba six terminaltables trimesh pandas "$spconv"
pip install --no-deps -c constraints-mmdet3d.txt \
  "$wheels"/mmcv-2.1.0-"$tag"-*.whl mmengine mmdet mmdet3d lyft-dataset-sdk

"$python" - <<'CHECK'
import mmcv.ops, mmdet3d, spconv.pytorch
print(f"mmdet3d {mmdet3d.__version__} with mmcv {mmcv.__version__} and its ops: ready")
CHECK
