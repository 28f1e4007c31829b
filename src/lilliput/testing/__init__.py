"""Conformance suites, one a kind: what every method must hold to, for Lilliput's own and for third parties'.

A suite is a module with `LAWS`, functions of a method's class that raise AssertionError where the method breaks the
law, and `check(cls)`, which runs them all. In a test file of your own:

    @pytest.mark.parametrize("law", lilliput.testing.weight_method.LAWS)
    def test_my_method(law):
        law(MyMethod)
"""
