"""`outbid doctor`: is this node healthy, and if not, what is to be done?

Gathering (`look_*.py`) and judging (`judge_*.py`) are apart: a judgement is a pure function of facts. Gathering never
waits long for anything, because the machine it looks at may be the sick one.
"""
