"""The daemon over HTTP: control API, metrics. FastAPI lives here and nowhere else."""
