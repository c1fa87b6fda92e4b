"""HEAT: priors, learned residuals, and their composition."""
