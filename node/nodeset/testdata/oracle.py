# Answers of ClusterShell, one line for each expression on standard input: the
# names, a tab and the folded set; or "refused".
import sys
from ClusterShell.NodeSet import NodeSet, RESOLVER_NOGROUP

for line in sys.stdin:
    try:
        s = NodeSet(line.rstrip("\n"), resolver=RESOLVER_NOGROUP)
        print(" ".join(s) + "\t" + str(s))
    except Exception:
        print("refused")
