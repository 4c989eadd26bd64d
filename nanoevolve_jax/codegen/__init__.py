"""Code mutation: language models rewrite functions of a policy, and a search selects among them.

Every rewritten function is validated in a sandbox before it is trained.
"""
