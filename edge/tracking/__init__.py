"""From rows of the class mask to defects: regions, filters, fragments, in constant memory per open region."""
