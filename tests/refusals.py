"""What every refusal of a stage has in common."""

from conftest import snapshot

STAGES = ("squeeze", "ranking", "recover", "validate")


def refused(place, stage, *named, env=None, **changes):
    """Run the stage; it has to refuse in one line that holds `named`, and to leave every file as it was."""
    before = snapshot(place.root)
    outcome = place.run(stage, env, **changes)
    assert outcome.code == 2, f"exit code {outcome.code}: {outcome.out}{outcome.err}"
    lines = outcome.err.strip().splitlines()
    assert lines[-1].startswith("error: ") and [line for line in lines if "error" in line.lower()] == lines[-1:]
    assert "Traceback" not in outcome.err
    for name in named:
        assert str(name) in lines[-1]
    assert snapshot(place.root) == before
    return lines[-1]
