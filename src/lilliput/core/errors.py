"""Everything that Lilliput raises or warns of; each message says what, where and what to do, in one line."""


class LilliputError(ValueError):
    """Base of all errors that a user of Lilliput can cause."""


class RecipeError(LilliputError):
    """A recipe, or a part of one, that can't be read or doesn't fit the model."""


class MethodError(LilliputError):
    """A method that doesn't exist, or that can't take the weight it was given."""


class NotInstalled(MethodError):
    """A method that neither this version nor an installed plug-in brings."""


class ModelError(LilliputError):
    """A model that can't be used as it is: weights of another model, NaN in a weight, no export."""


class DataError(LilliputError):
    """Data or an evaluation function that can't be used."""


class BudgetError(LilliputError):
    """A budget that can't be met; the message names the nearest one that can."""


class DeviceError(LilliputError):
    """A description of a device, or a layer on it, that can't be: entries missing, a buffer too small."""


class FileError(LilliputError):
    """A file that is refused: damaged, hostile, of a newer format, or no Lilliput file at all."""


class ExchangeError(LilliputError):
    """Processes that train together have lost one of them; what to do is to start again from the last checkpoint."""


class LilliputWarning(UserWarning):
    """Something went on in a lesser way than it might have; the message says what would help."""


class NotWorthwhile(MethodError):
    """A method would make this weight larger or no better; the weight is kept as it is, and the report says why."""
