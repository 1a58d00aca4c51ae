import sys; sys.path.insert(0,"tests/ranking")
import shutil, time, random, os
import pytest
from test_ranking_killed import *
@pytest.mark.parametrize("line", [{}, {"ranking_file": None}, {"ranking_file": None, "criterion": "k-center"}],ids=["both","sel","feat"])
def test_stress(place, line):
    line = {"batch_size": 1, "ipc": 2, **line}
    place.works("ranking", **line)
    whole = outputs(place)
    bad=[]
    for k in range(40):
        shutil.rmtree(place/"selected"); (place/"ranking.csv").unlink(missing_ok=True)
        gap=random.uniform(0,0.15)
        ch=[]
        for r in range(3):
            ch.append(in_child(place, lambda: time.sleep(gap*r), {"RANK":str(r),"WORLD_SIZE":"3"}, **line))
        codes=[ended(c) for c in ch]
        if codes!=[0,0,0] or hidden(place) or outputs(place)!=whole:
            bad.append((k, round(gap,3), codes, hidden(place), outputs(place)==whole))
            for h in place.root.rglob(".*"):
                shutil.rmtree(h) if h.is_dir() else h.unlink(missing_ok=True)
    assert not bad, "\n".join(map(str,bad))
