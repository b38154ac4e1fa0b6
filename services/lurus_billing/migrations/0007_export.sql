-- What Lago refuses is kept for a person too.
ALTER TABLE dead_letter
    DROP CONSTRAINT dead_letter_cause_check,
    ADD CONSTRAINT dead_letter_cause_check CHECK (cause IN ('parked', 'conflict', 'export'));
