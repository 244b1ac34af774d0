"""Any mmdet3d detector behind our `Detector` interface. Nothing here is imported without mmdet3d.

`recipe.py` reads what a config says, `families.py` names the taps of known models, `taps.py` reads
them, `border.py` converts batches and boxes. `make mmdet3d` installs what this room needs.
"""
