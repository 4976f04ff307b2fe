"""A question and an exact final answer: any two columns, GSM8K, or arithmetic that is generated here."""
