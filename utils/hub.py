"""Folders that the Hugging Face Hub takes as they are: what is in them, their card, and their record.

A card is a README.md with YAML in front, of which the Hub reads the licence and what a data set or model is for
(https://huggingface.co/docs/hub/datasets-cards, .../model-cards).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping

import yaml

from utils import cli
from utils.data.datasets import called
from utils.data.manifest import SHARED
from utils.run.errors import UserError
from utils.run.files import copy, flush_folder, sha256, write_json, write_text
from utils.run.markdown import escaped
from utils.run.outputs import check_output, claim, locked

CARD = "README.md"
LONG = 80  # letters of a value: longer ones are left to the files

# Those that the Hub knows by a name (https://huggingface.co/docs/hub/repositories-licenses), without models' own.
LICENCES = frozenset(
    "apache-2.0 mit openrail afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc "
    "cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl "
    "mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl unknown".split()
)
SIZES = (10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M")


@dataclass(frozen=True)
class Contents:
    """The files of a folder, by their paths in it."""

    copies: Mapping[str, Path]  # of these files, byte for byte
    texts: Mapping[str, str]
    pictures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)  # what draws each


def add_sharing(parser: cli.Parser, source: str) -> None:
    """The flags that all folders for the Hub have; `source`: whose licence is asked for."""
    parser.add_argument("--output-dir", required=True, metavar="FOLDER", help="to write")
    parser.add_argument(
        "--licence",
        "--license",
        metavar="TEXT",
        help=f"of {source}: a name that the Hub knows, such as cc-by-4.0, or what its owners say, in your words, with "
        "the address where they say it",
    )
    parser.add_argument(
        "--source",
        metavar="TEXT",
        help="what these data are called; what the files say if left out, and no other known data set than they say",
    )
    parser.add_argument("--name", metavar="TEXT", help="heads the card; made of what is known if left out")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what this command wrote there before, changed or not; files of your own stay",
    )


def require_licence(parser: cli.Parser, licence: str | None, source: str) -> None:
    """Raises UserError where nobody says under which licence the result may be passed on."""
    if not (licence or "").strip():
        parser.error(
            f"--licence is needed: that of {source}, such as cc-by-4.0 or mit, or in your words with an address, as "
            "'for research only, https://...'"
        )


def name_of_data(given: str | None, *said: str | None) -> str | None:
    """What the real data are called: as `given` by --source, else the first that files have `said`, if any has.

    Raises UserError where these are two known data sets: the licence would be that of the wrong one.
    """
    for name in said:
        known = called(given or ""), called(name or "")
        if all(known) and known[0] != known[1]:
            raise UserError(f"--source {given}: the files say that these data are {name}; leave it out")
    return next((name for name in (given, *said) if name), None)


def licence_fields(text: str) -> dict[str, str]:
    """What a card's YAML says of a licence: a name that the Hub knows, or another one and where it stands."""
    if text.strip().lower() in LICENCES:
        return {"license": text.strip().lower()}
    address = re.search(r"https?://[^\s<>\"'),;]+", text)
    name = identifier(text.replace(address[0], "") if address else text) or "see-card"
    return {"license": "other", "license_name": name, **({"license_link": address[0].rstrip(".")} if address else {})}


def identifier(text: str) -> str:
    """Of small letters, digits, dots and dashes, as the Hub wants it. May be empty."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60].strip("-.")


def licence_section(licence: str, source: str | None, what: str) -> str:
    """Of a card: the licence of the data `source`, as it was given with `what` was made of these."""
    of = f", {escaped(source)}," if source else ""
    return f"## Licence\n\nThe licence of the source data{of} as given by who shares {what}: {escaped(licence)}."


def size_category(count: int) -> str:
    """Of so many images, as the Hub calls it."""
    lower = "n"
    for limit, name in SIZES:
        if count < limit:
            return f"n<{name}" if lower == "n" else f"{lower}<n<{name}"
        lower = name
    return f"n>{lower}"


def card(facts: Mapping[str, Any], text: str) -> str:
    """README.md: the `facts` as YAML, then the text."""
    front = yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6)
    return f"---\n{front}---\n\n{text.strip()}\n"


def rows_of(settings: Any, prefix: str = "") -> list[tuple[str, str]]:
    """What a card's table says of settings: those of one line, and no JSON objects. Empty where there are none."""
    rows = []
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        if value is not None and not isinstance(value, Mapping) and len(shown) <= LONG:
            rows.append((f"{prefix}{name}", shown))
    return rows


def without_folders(value: Any) -> Any:
    """A JSON value whose absolute paths are cut to their last name: the others say where somebody's files lie."""
    if isinstance(value, dict):
        return {name: without_folders(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_folders(entry) for entry in value]
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name or value
    return value


def write(folder: str | Path, settings: dict, contents: Contents, overwrite: bool, *inputs: str | Path) -> bool:
    """Make the folder, and say whether anything was left to do.

    `settings` identify what it holds; after a kill the same call goes on, and what is missing is written again. Files
    that its record does not name, such as those of git, stay as they are. Raises UserError where the folder holds
    something else, or a file that was changed since, unless it is to `overwrite`; or touches one of the `inputs`.
    """
    folder = Path(folder)
    names = sorted([*contents.copies, *contents.pictures, *contents.texts])
    check_output(folder, *inputs)
    with locked(folder):
        found = claim(folder, SHARED, settings, overwrite, *inputs, files=names)
        if found.get("finished") and _is_whole(folder, found, overwrite):
            return False
        for name, source in contents.copies.items():
            copy(source, folder / name)
        for name, draw in contents.pictures.items():
            draw(folder / name)
        for name, text in contents.texts.items():
            write_text(folder / name, text)
        flush_folder(folder)  # what the record is going to say is there
        files = {name: sha256(folder / name) for name in names}
        write_json(folder / SHARED, {"settings": settings, "finished": True, "files": files})
        return True


def _is_whole(folder: Path, record: dict, overwrite: bool) -> bool:
    """Whether all files are there. Raises UserError for one that has changed, unless it is to be overwritten."""
    files = record.get("files")
    if not isinstance(files, dict):
        return False
    there = {name: sha256(folder / name) for name in files if (folder / name).is_file()}
    changed = [name for name, digest in there.items() if digest != files[name]]
    if changed and not overwrite:
        raise UserError(
            f"{folder / changed[0]}: was changed since it was written; keep it elsewhere and give --overwrite to write "
            "it again, or choose another folder"
        )
    return there == files
