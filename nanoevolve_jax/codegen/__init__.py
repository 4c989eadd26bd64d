"""Code mutation: functions of a policy rewritten by language models, proved harmless, searched."""
