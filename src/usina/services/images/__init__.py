"""Images: where the disks and kernels that machines start from are built, fetched, taken in and kept.

`ImageLibrary` is the door; `RECIPES` lists what can be built here. Knows files and processes, nothing of tenants.
"""
