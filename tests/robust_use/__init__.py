"""Uses that are legitimate and unusual: each kind gives the right numbers or is refused in clear words."""
