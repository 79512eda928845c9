"""One hypothesis profile for this folder: no deadlines on noisy machines, no files left behind."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "operator_core", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("operator_core")
