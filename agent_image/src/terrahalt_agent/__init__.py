"""The process in an agent pod: it runs terraform for one run, and a cancel really halts it.

`core` decides (pure), `adapters` do, `driver` carries decisions out, `app` puts it together.
"""

__version__ = "0.1.0"
