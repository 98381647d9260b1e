"""
Continuous state: a token that is decoded starts from the last state of the real token before it, not from its own.

`state_init="previous_token"` at call time. Tokens that are computed side by side need the usual initial state:
this one is for calls of one token behind a past. The cache keeps the state from call to call. A text then depends on
how it was cut into calls, and what cannot be right is refused. Rows still stand alone.
"""

import torch


def starts_from_past(state_init, config, cache, shape, training: bool, resumed: bool) -> bool:
    """
    Whether the tokens of a call start from the state in the cache.

    Args:
        state_init (`str`, *optional*): Of the call; `None` for the config's.
        cache (`RecurrentDepthCache`, *optional*), shape (`(batch, sequence)`), training, resumed: Of the call.

    Raises:
        `ValueError`: where no state can go from token to token.
    """
    if state_init is None:
        return False
    if state_init != "previous_token":
        raise ValueError(
            f"state_init={state_init!r}: a call gives 'previous_token' or None; other initial states are the config's."
        )
    reason = None
    if training:
        reason = "training, which computes tokens side by side: call model.eval() first"
    elif config.input_injection == "none":
        reason = "input_injection='none': the token itself would never reach its state"
    elif cache is None:
        reason = "use_cache=False: the state is kept in the cache"
    elif cache.is_compileable:
        reason = f"a {type(cache).__name__}: use a RecurrentDepthCache"
    elif resumed:
        reason = "resume: such tokens have a state already"
    if reason is not None:
        raise ValueError(f"state_init='previous_token' does not go with {reason}.")
    if shape[1] > 1 or not cache.get_seq_length():
        return False
    if cache.state is None:
        raise ValueError(
            "state_init='previous_token' needs the state of the token before: run all of the past with it, and do not "
            "crop past_key_values in between."
        )
    return True


def keep_state(cache, state_init, state, last, real) -> None:
    """
    Puts the state of each row's last real token into the cache, or what is there out of it if it is not asked for.

    Args:
        state (`(batch, sequence, hidden)`): After the last recurrence of each token.
        last (`(batch,)`): The place of each row's last real token.
        real (`(batch, sequence)`, *optional*): `False` on padding; a row of nothing else keeps its state.
    """
    if state_init is None:
        if cache.state is not None:
            cache.state = None
        return
    new = state[torch.arange(len(state), device=state.device), last].detach()
    if real is not None and cache.state is not None:
        new = torch.where(real.any(-1, keepdim=True), new, cache.state)
    cache.state = new


__all__ = ["keep_state", "starts_from_past"]
