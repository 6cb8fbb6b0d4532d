"""The shelf of facades: each speaks one protocol and turns its wire into operations of `app`."""
