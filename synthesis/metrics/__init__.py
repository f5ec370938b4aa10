"""Image metrics by namespace: the same word means another number under another convention.

- `ours`: what this project reports.
- `synthrad2023`, `synthrad2025`: the challenges' CT metrics, their quirks included.
- `brasyn`: the brain synthesis challenge's metrics, their quirks included.

Arrays are (slices, rows, columns), truth and prediction in the same units.
"""
