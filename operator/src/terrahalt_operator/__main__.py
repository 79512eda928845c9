"""`python -m terrahalt_operator`: what the operator's image runs."""

from terrahalt_operator.app import main

main()
