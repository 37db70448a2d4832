"""A run: one folder with the configuration, all stages, the model, its metrics and a picture of them."""

from solid_ext.run.examples import Example, example_users
from solid_ext.run.folder import Begun, begun_by, begun_run, check_out, holds_run, open_run
from solid_ext.run.picture import draw_report
from solid_ext.run.training import Run, planned_stages, slowest_part, train_run
from solid_ext.run.updating import update_run

__all__ = [
    "Begun",
    "Example",
    "Run",
    "begun_by",
    "begun_run",
    "check_out",
    "draw_report",
    "example_users",
    "holds_run",
    "open_run",
    "planned_stages",
    "slowest_part",
    "train_run",
    "update_run",
]
