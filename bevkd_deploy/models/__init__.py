"""The detector family: one exportable forward per module, named as mmdet3d names them."""
