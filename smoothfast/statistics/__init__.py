"""Vote counts to bounds, radii and decisions, rounded so that no guarantee is overstated.

Pure functions on NumPy arrays, in float64 whatever comes in. Arguments broadcast against one another; scalars give
scalars. `bounds` judges the votes of a fixed number of samples, `radii` turns probabilities into radii, `sequential`
looks at growing numbers of samples and stops as soon as it may.
"""

from .bounds import (
    LEVEL,
    TOP_SHARE,
    binomial_test,
    class_bounds,
    clopper_pearson_interval,
    clopper_pearson_lower,
    clopper_pearson_upper,
    own_and_rival,
    samples_to_certify,
    samples_to_predict,
    share_bounds,
)
from .radii import (
    certified_radius,
    converted_radius,
    gaussian_probability_lower,
    gaussian_probability_upper,
    gaussian_quantile_lower,
    gaussian_quantile_upper,
    laplace_radius,
    uniform_radius,
)
from .sequential import (
    MOST_SAMPLES,
    Boundaries,
    RadiusTest,
    anytime_lower,
    evidence,
    geometric_looks,
    radius_test,
    radius_tests,
    sequential_boundaries,
)

__all__ = [
    "LEVEL",
    "MOST_SAMPLES",
    "TOP_SHARE",
    "Boundaries",
    "RadiusTest",
    "anytime_lower",
    "binomial_test",
    "certified_radius",
    "class_bounds",
    "clopper_pearson_interval",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "converted_radius",
    "evidence",
    "gaussian_probability_lower",
    "gaussian_probability_upper",
    "gaussian_quantile_lower",
    "gaussian_quantile_upper",
    "geometric_looks",
    "laplace_radius",
    "own_and_rival",
    "radius_test",
    "radius_tests",
    "samples_to_certify",
    "samples_to_predict",
    "sequential_boundaries",
    "share_bounds",
    "uniform_radius",
]
