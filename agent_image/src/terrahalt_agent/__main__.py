"""`python -m terrahalt_agent`: the agent of one pod, configured by its environment."""

from terrahalt_agent.app import main

main()
