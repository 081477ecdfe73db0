"""A graph and walks on it after trlX's examples/randomwalks (CarperAI/trlx at 3340c2f, seed 1002), written to randomwalks.json beside this file.

    python3.11 -m venv /tmp/golden && /tmp/golden/bin/pip install numpy
    /tmp/golden/bin/python test/golden/randomwalks.py

Random numbers are drawn in the example's order from numpy's RandomState, so that the graph and the walks are the example's.
"""
import json
from collections import deque
from pathlib import Path

import numpy as np

NODES, LONGEST, WALKS, EDGES, GOAL = 21, 10, 1000, 0.1, 0
rng = np.random.RandomState(1002)

while True:
    adjacent = rng.rand(NODES, NODES) > 1 - EDGES
    np.fill_diagonal(adjacent, 0)
    if adjacent.sum(1).all():
        break
adjacent[GOAL, :] = 0
adjacent[GOAL, GOAL] = 1


def other_than_goal():
    while (node := rng.randint(NODES)) == GOAL:
        pass
    return node


walks = []
for _ in range(WALKS):
    walk = [other_than_goal()]
    while len(walk) < LONGEST and walk[-1] != GOAL:
        walk.append(rng.choice(np.nonzero(adjacent[walk[-1]])[0]))
    walks.append([int(node) for node in walk])


def nodes_to_goal(start):
    """Nodes of the shortest path, both ends among them; the longest that counts where there is none."""
    distance = {start: 1}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for following in np.nonzero(adjacent[node])[0]:
            if following not in distance:
                distance[following] = distance[node] + 1
                queue.append(following)
    return min(LONGEST, distance.get(GOAL, LONGEST))


Path(__file__).with_name("randomwalks.json").write_text(json.dumps({
    "longest": LONGEST,
    "edges": [[int(to) for to in np.nonzero(row)[0]] for row in adjacent],
    "shortest": [nodes_to_goal(start) for start in range(NODES)],
    "walks": ["".join(chr(97 + node) for node in walk) for walk in walks],
}) + "\n")
