"""Which of the models that training leads to becomes the next player, by the validation rows."""
