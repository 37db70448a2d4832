"""The service: recommendations of a trained model over HTTP, and a page to look at them.

It needs the packages of the extra `serve`; nothing else of solid_ext imports it.
"""

from solid_ext.data.semantics.extra import require

for package in ("fastapi", "uvicorn", "prometheus_client"):
    require(package, "serve", "serve")

from solid_ext.service.app import create_app  # noqa: E402
from solid_ext.service.limits import Limits  # noqa: E402
from solid_ext.service.model import Follower  # noqa: E402
from solid_ext.service.server import serve  # noqa: E402

__all__ = ["Follower", "Limits", "create_app", "serve"]
