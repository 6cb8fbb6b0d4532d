"""Volumes that are folders: files of a project, on one host, for many tasks at a time.

A volume is a sparse file with an ext4 in it, so that its size holds whatever the host's file system is. It is seen
only through mounts that runs hold: `mounts` makes them, of the standard library alone, because the warden of
processes loads it by its path; `shelf` keeps the files, for task drivers.
"""
