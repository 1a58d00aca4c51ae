"""What a method needs besides recover, and what scripts ask about methods (`python -m recover.methods`).

It prints the names; with `--needs NAME` what that method needs, as lines that bash can read; with `--made FOLDER` which
one made the set there.
"""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from recover.methods import METHODS, recipes
from utils.data.datasets import DATASETS, SMALL_SIZE
from utils.data.manifest import Manifest, images_of
from utils.data.sizes import size_at_a_glance
from utils.run import boundary, packages, registry
from utils.run.errors import UserError


@dataclass(frozen=True)
class Needs:
    """Command lines of other stages, as flags."""

    ranking: str = "--criterion medium"  # of `python -m ranking`, for the images that it starts from; empty: noise
    statistics: str = ""  # of `python -m squeeze.statistics`, for the files that it reads; empty: none
    barycenters: bool = False  # whether it reads those of `python -m squeeze.barycenters`
    recovers: bool = True  # False: what ranking makes is the set
    protocol: str = "delt"  # of its own students
    teachers: str = "one"  # one or several: how many recover by, where there are several
    package: str = ""  # of utils/run/packages.py, that requirements.txt leaves out
    iterations: int = 0  # its recipe's
    round_iterations: int = 0


# Of those that need something else than DELT.
_FADRM_NEEDS = Needs("--criterion medium --candidates 300 --crops 5 --tiles {tiles}", protocol="fadrm")
NEEDS: dict[str, Needs] = {
    "delt+": Needs("--criterion easy-herding"),
    "cda": Needs(protocol="cda"),
    "sre2l": Needs(protocol="sre2l"),
    "wmdd": Needs(statistics="--batch-size 64 --per-class", barycenters=True, protocol="wmdd", package="POT"),
    "gvbsm": Needs(statistics="--batch-size 64", protocol="gvbsm", teachers="several"),
    "edc": Needs("--criterion random", "--batch-size 64 --per-class", protocol="edc", teachers="several"),
    "fadrm": _FADRM_NEEDS,
    "fadrm+": replace(_FADRM_NEEDS, teachers="several"),
    # RDED (arXiv 2312.03526): collages of the easiest crops, as they are.
    "rded": Needs("--criterion top --candidates 300 --crops 5 --tiles {tiles}", recovers=False, protocol="rded"),
    # CIM: whole images at half the size, at every size; of 300, which are 75 images a class.
    "cim": Needs("--criterion top --candidates 300+ --tiles 2", protocol="cim"),
    # The easier half of some images at random.
    "mosaic": Needs("--criterion top --candidates 2x --tiles 2", protocol="mosaic"),
}

# What starts a method above SMALL_SIZE pixels, where that differs.
LARGE_RANKING = {"edc": "--criterion top --candidates 300 --crops 5 --tiles {tiles}"}

# In the flags of ranking: tiles along a side of a collage, for images of SMALL_SIZE pixels and less, and above.
TILES, FEW_TILES, MANY_TILES = "{tiles}", 1, 2


def needs(name: str, where: str = "") -> Needs:
    """What a method needs. `where`: a known data set, the pixels of the input, or an ImageFolder, some of whose images
    are looked at; small images if nothing says it.
    """
    found, size, dataset = NEEDS.get(name, Needs()), int(where) if where.isdigit() else SMALL_SIZE, None
    if where in DATASETS:
        size, dataset = DATASETS[where].input_size, where
    elif where:
        with contextlib.suppress(UserError):  # the stages say what is wrong with the folder
            size = size_at_a_glance(Path(where))
    recipe = recipes(dataset, size).get(name)
    if recipe:
        found = replace(found, **{field: recipe[field] for field in ("iterations", "round_iterations")})
    if recipe and recipe["init"] == "noise":
        return replace(found, ranking="")
    if size <= SMALL_SIZE:
        return replace(found, ranking=found.ranking.replace(TILES, str(FEW_TILES)))
    return replace(found, ranking=LARGE_RANKING.get(name, found.ranking).replace(TILES, str(MANY_TILES)))


def made(folder: str) -> str:
    """The method by which the set in `folder` was recovered; empty where it is none of these, or nothing says it."""
    with contextlib.suppress(UserError):  # validate says what is wrong with the manifest
        found = Manifest.of(images_of(folder)).recipe
        return found if found in names() else ""
    return ""


def main() -> None:
    parser = boundary.Parser("recover.methods", "The methods, one a line.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="ends with exit code 2 if one is not known")
    parser.add_argument(
        "--needs",
        nargs="+",
        metavar=("NAME", "WHERE"),
        help="what it needs, for a data set, inputs of so many pixels, or the images of a folder",
    )
    parser.add_argument("--made", metavar="FOLDER", help="which one made the set there; an empty line for none of them")
    args = parser.parse_args()
    if args.made:
        print(made(args.made))
        return
    name, where = [*(args.needs or ()), "", ""][:2]
    registry.main("method", names(), args.names + [name] * bool(name))
    for line in shell_lines(needs(name, where)) if name else ():
        print(line)


def names() -> list[str]:
    """Of all methods, those without a recipe too."""
    return list({**METHODS, **NEEDS})


def packages_said() -> str:
    """Which methods need more than requirements.txt installs, for --help."""
    return "; ".join(
        f"{name} also needs the package {found.package} ({packages.how_to_install(found.package)})"
        for name, found in NEEDS.items()
        if found.package
    )


def shell_lines(found: Needs) -> list[str]:
    """NEEDS_RANKING='...' and so on; true and false as bash has them. NEEDS_MISSING: a package, and how to get it."""
    values: dict[str, Any] = {field.name: getattr(found, field.name) for field in fields(found)}
    is_missing = found.package and packages.is_missing(found.package)
    values["missing"] = f"{found.package}, {packages.how_to_get(found.package)}" if is_missing else ""
    return [
        f"NEEDS_{name.upper()}={str(value).lower() if type(value) is bool else shlex.quote(str(value))}"
        for name, value in values.items()
    ]
