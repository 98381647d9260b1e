"""Facts that a question's own world gives: what recurrent depth carries, and what written steps do."""
