# Copyright 2026 the bevcask authors
#
# Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in
# compliance with the License. You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software distributed under the License
# is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or
# implied. See the License for the specific language governing permissions and limitations.
"""Records what a detector says into a folder that bevcask reads (`teacher=spool`).

Copy this one file into any repository; it needs Python 3.6 and numpy, and no framework by name:

    from bevcask_recorder import Recorder

    recorder = Recorder("spool", manifest)            # as docs/spool.md says, a dict or a JSON file
    recorder.watch(model, {"bev.neck": "pts_neck"})   # tap: module, as model.named_modules() says
    for data in loader:                               # evaluation, no augmentation
        tokens = [meta["sample_idx"] for meta in data["img_metas"]]
        if recorder.has(tokens):
            continue                                  # an earlier run recorded them
        with torch.no_grad():
            results = model(return_loss=False, **data)
        recorder.put(tokens, {"head.boxes": boxes_of(results)})
    recorder.finish()

Files are whole or not there, whenever the process dies; the same command goes on. Nothing of the
model is changed: no mode, no gradient, no random number.
"""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np

VERSION = "1.0"
FORMAT = "bevcask-spool"
LAYOUT = 1
_DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "int8": "I8",
    "bool": "BOOL",
}


class RecorderError(Exception):
    """What is recorded does not fit; the message says what, where and what to do."""


class Recorder(object):
    """A folder that is being filled.

    Args:
        folder: made if it is not there; one that was begun with the same manifest goes on.
        manifest: dict, or the path of a JSON file: taps, classes, boxes, memory.
        config: text of the repository's configuration, kept as it is.

    Raises:
        RecorderError: the folder was begun with another manifest, or is finished.
    """

    def __init__(self, folder, manifest, config=""):
        if not isinstance(manifest, dict):
            with open(manifest) as file:
                manifest = json.load(file)
        self.folder = folder
        self.samples = os.path.join(folder, "samples")
        self._config = config
        self._manifest = json.loads(json.dumps(manifest))
        self._model = None
        self._taps = {}
        self._said = {}
        self._hooks = []
        self._begun = False
        os.makedirs(self.samples, exist_ok=True)

    def watch(self, model, taps):
        """Keep what modules say, from now on; the last forward before a `put` counts.

        Args:
            model: with `named_modules()`, in evaluation mode whenever it runs.
            taps: tap -> name of a module, or (name, choose): `choose(output)` picks the tensor out
                of what the module returns.

        Raises:
            RecorderError: a module is not there; some that are, are named.
        """
        modules = dict(model.named_modules())
        for tap, place in taps.items():
            name, choose = place if isinstance(place, tuple) else (place, None)
            if name not in modules:
                near = [known for known in modules if known.split(".")[-1] == name.split(".")[-1]]
                raise RecorderError(
                    "tap %r: the model has no module %r. Modules named alike: %s. It has %d in all, "
                    "`[n for n, _ in model.named_modules()]` lists them."
                    % (tap, name, ", ".join(near[:5]) or "none", len(modules))
                )
            self._hooks.append(modules[name].register_forward_hook(self._keep(tap, choose)))
        self._model = model
        self._taps.update(taps)

    def _keep(self, tap, choose):
        def hook(module, inputs, output):
            self._said[tap] = _kept(output if choose is None else choose(output))

        return hook

    def has(self, tokens):
        """Tell whether all of these samples are recorded."""
        return all(os.path.isfile(self._path(token)) for token in tokens)

    def put(self, tokens, said=None):
        """Record a batch: what the watched modules said, and what is handed over.

        Args:
            tokens: sample tokens, in the order of the batch.
            said: tap -> tensor or array, batch first; or a list, one a sample.

        Raises:
            RecorderError: a tap is missing or of another length; the model trains; a sample was
                recorded with other bytes.
        """
        self._require_evaluation()
        self._begin()
        values = dict(self._said)
        values.update(said or {})
        missing = sorted(set(self._manifest["taps"]) - set(values))
        if missing:
            raise RecorderError(
                "sample %s: nothing was said of %s, which the manifest lists. Watch the module or "
                "hand it to put()." % (tokens[0], ", ".join(missing))
            )
        arrays = {tap: _per_sample(tap, values[tap], tokens) for tap in self._manifest["taps"]}
        self._said = {}
        for number, token in enumerate(tokens):
            self._write(token, {tap: own[number] for tap, own in arrays.items()})

    def finish(self):
        """Say that nothing more will come, and let the model go."""
        self._begin()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        number = sum(name.endswith(".safetensors") for name in os.listdir(self.samples))
        _replace(os.path.join(self.folder, "finished.json"), _json({"samples": number}))

    def _begin(self):
        """Write the manifest, or check that the folder was begun with the same one."""
        if self._begun:
            return
        told = dict(self._manifest)
        told.update(format=FORMAT, layout=LAYOUT, recorder=VERSION)
        teacher = dict(told.get("teacher", {}))
        teacher.setdefault("weights", None if self._model is None else digest(self._model))
        teacher.setdefault("config", self._config)
        teacher.setdefault("git", _revision())
        told["teacher"] = teacher
        path = os.path.join(self.folder, "manifest.json")
        if os.path.isfile(path):
            with open(path) as file:
                found = json.load(file)
            differing = [
                key for key in sorted(set(found) | set(told)) if found.get(key) != told.get(key)
            ]
            if differing:
                raise RecorderError(
                    "%s was begun with another %s. Record into another folder, or remove this one."
                    % (self.folder, " and ".join(differing))
                )
        else:
            _replace(path, _json(told))
        self._begun = True

    def _require_evaluation(self):
        if self._model is None:
            return
        training = [name for name, module in self._model.named_modules() if module.training]
        if training:
            raise RecorderError(
                "the model is in training mode (%s): what it says depends on the batch and on chance. "
                "Call model.eval() before the forward." % (training[0] or "the whole of it")
            )

    def _path(self, token):
        return os.path.join(self.samples, "%s.safetensors" % token)

    def _write(self, token, arrays):
        path, new = self._path(token), pack(arrays)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if file.read() == new:
                    return
            raise RecorderError(
                "sample %s was recorded before with other bytes (%s). A teacher must say the same "
                "twice: look for dropout, augmentation or kernels without a fixed order; or remove "
                "the file to record it again." % (token, path)
            )
        _replace(path, new)


def pack(arrays):
    """Return arrays as the bytes of a safetensors file: length, JSON header, values."""
    header, parts, end = {}, [], 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        if array.dtype.name not in _DTYPES:
            raise RecorderError(
                "%s is %s; expected one of %s" % (name, array.dtype, ", ".join(sorted(_DTYPES)))
            )
        if sys.byteorder != "little":
            array = array.byteswap()
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        parts.append(array.tobytes())
        end += array.nbytes
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text] + parts)


def digest(model):
    """Return the SHA-256 of a model's `state_dict`: names, types, shapes and values in order."""
    state, found = model.state_dict(), hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(to_numpy(state[name]))
        found.update(("%s %s %s;" % (name, array.dtype.name, list(array.shape))).encode())
        found.update(array.tobytes())
    return found.hexdigest()


def to_numpy(value):
    """Return a tensor of any framework as an array on the host; bfloat16 becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if "bfloat16" in str(getattr(value, "dtype", "")):
            value = value.float()
        value = value.numpy()
    return np.asarray(value)


def _kept(value):
    """Return what was said as it is now: a ReLU behind the module may work in place."""
    if isinstance(value, (list, tuple)):
        return [_kept(one) for one in value]
    if hasattr(value, "detach"):
        value = value.detach()
    copied = getattr(value, "clone", None) or getattr(value, "copy", None)
    return value if copied is None else copied()


def _per_sample(tap, value, tokens):
    """Return one array a sample."""
    own = value if isinstance(value, (list, tuple)) else to_numpy(value)
    if len(own) != len(tokens):
        raise RecorderError(
            "tap %r: %d values for %d samples. The first axis is the batch."
            % (tap, len(own), len(tokens))
        )
    return [to_numpy(one) for one in own]


def _revision():
    try:
        found = subprocess.check_output(
            ["git", "describe", "--always", "--dirty"], stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.decode().strip()


def _json(tree):
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode()


def _replace(path, content):
    """Write a file that is there whole or as it was before."""
    part = "%s.%d.part" % (path, os.getpid())
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
