from __future__ import annotations
import sys
from tests.cluster import up, down, status, tool
match sys.argv[1]:
    case "up": print(up())
    case "down": down()
    case "status": print(status())
    case "tools":
        for n in ("kind", "kubectl", "helm", "terraform"): print(n, tool(n))
