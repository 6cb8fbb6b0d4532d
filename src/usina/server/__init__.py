"""The composition root: settings, discovery, wiring. The only place that knows concrete plugins and the store."""
