"""The graph under rewriting: index, order, facts, and the Rewriter that changes it."""
