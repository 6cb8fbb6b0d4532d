"""The reconciler: lease, observe, decide, step, record."""
